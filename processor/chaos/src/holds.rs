//! Holds: tasks that are held for a while, and let go, and a target that is called or not, as people want it.
//!
//! Not what becomes of it, which the checker judges. Invariant: nothing is held any more, and nothing is wanted of a target that is well, when
//! the last one has ended.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::Failed;
use crate::fleet::Fleet;
use crate::ledger::{Ledger, now_micros};
use crate::plan::{HELD, Random, SPENT, STOPPED, WARDS};
use crate::target::Parts;

/// Who holds and lets go.
pub(crate) struct Holder<'a> {
    /// Whose command line it is.
    pub(crate) fleet: &'a Fleet,
    /// What was held and let go.
    pub(crate) ledger: Ledger,
    /// What was wanted of breakers.
    pub(crate) breakers: Ledger,
    /// The target, of which one part may be down.
    pub(crate) target: Parts,
    /// The seed.
    pub(crate) seed: u64,
}

/// What somebody wants of the breakers of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// It is not called.
    Open,
    /// It is called.
    Close,
    /// They begin anew.
    Reset,
}

/// How long the command line waits until all shards know.
const WAIT: &str = "30s";

/// What the command line says where not all of them do.
const PARTLY: i32 = 6;

/// How long a target is down before somebody wants something.
const DOWN: Duration = Duration::from_secs(5);

/// What that takes, until nothing is wanted any more: nobody begins who could not end while tasks come.
const TAKES: Duration = Duration::from_secs(16);

/// What the command line says of a hold that is not there.
const UNKNOWN: i32 = 3;

/// How often a release is tried again.
const TRIES: usize = 60;

/// The pause before that.
const AGAIN: Duration = Duration::from_secs(1);

/// Between two times that tasks are let go which are out of attempts.
const BETWEEN: Duration = Duration::from_secs(12);

// === impl Wish ===

impl Wish {
    /// What it is called, in the command line and in the ledger.
    const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Reset => "reset",
        }
    }
}

// === impl Holder ===

impl Holder<'_> {
    /// Holds the scene, or a key of its tasks, now and then, for as long as tasks are produced.
    pub(crate) async fn hold(&self, tasks: Duration) -> Result<(), Failed> {
        let mut random = Random::new(self.seed, 3);
        let since = Instant::now();
        let mut number = 0;
        tokio::time::sleep(random.millis(1_000, 4_000)).await;
        while since.elapsed() < tasks {
            let name = format!("hold-{number}");
            let ward = format!("w{}", random.between(0, WARDS));
            let what = match number % 2 {
                0 => ("scene", HELD, "run"),
                _ => ("key", &*ward, "run"),
            };
            number += 1;
            self.hold_once(&name, what, &mut random).await?;
            tokio::time::sleep(random.millis(4_000, 10_000)).await;
        }
        Ok(())
    }

    /// Holds the scene whose deadlines stand still meanwhile, in the same way.
    pub(crate) async fn stop(&self, tasks: Duration) -> Result<(), Failed> {
        let mut random = Random::new(self.seed, 4);
        let since = Instant::now();
        let mut number = 0;
        tokio::time::sleep(random.millis(1_000, 4_000)).await;
        while since.elapsed() < tasks {
            let name = format!("stop-{number}");
            number += 1;
            let what = ("scene", STOPPED, "stop");
            self.hold_once(&name, what, &mut random).await?;
            // Until deadlines pass that go on again.
            tokio::time::sleep(random.millis(4_000, 24_000)).await;
        }
        Ok(())
    }

    /// Holds what is named so for a while; deadlines run or stop.
    async fn hold_once(
        &self,
        name: &str,
        (kind, value, deadlines): (&str, &str, &str),
        random: &mut Random,
    ) -> Result<(), Failed> {
        let asked = now_micros();
        let option = format!("--{kind}");
        let arguments = ["hold", &option, value, "--name", name, "--for", "1h"];
        let how = ["--deadlines", deadlines, "--yes", "--wait", WAIT];
        let code = self.tell(&[&arguments[..], &how].concat()).await?;
        let told = now_micros();
        tokio::time::sleep(random.millis(8_000, 16_000)).await;
        let released = now_micros();
        let arguments = ["release", name, "--yes", "--no-wait"];
        let code_of_release = self.insist(&arguments, &[0, UNKNOWN]).await?;
        self.ledger.write(&[
            "hold",
            &asked.to_string(),
            name,
            kind,
            value,
            &told.to_string(),
            &code.to_string(),
            &released.to_string(),
            &now_micros().to_string(),
            &code_of_release.to_string(),
        ]);
        Ok(())
    }

    /// Says of a target now and then whether it is called, for as long as tasks are produced: it is kept from that while it is well; it is
    /// called while it is down; and when it is well again, and nobody can know, that counts from then on.
    pub(crate) async fn force(&self, tasks: Duration) -> Result<(), Failed> {
        let mut random = Random::new(self.seed, 5);
        let since = Instant::now();
        let wishes = [Wish::Open, Wish::Close, Wish::Reset];
        tokio::time::sleep(random.millis(1_000, 4_000)).await;
        for (number, wish) in wishes.iter().cycle().enumerate() {
            if number > 0 && since.elapsed() + TAKES > tasks {
                break;
            }
            let is_down = |is_down| self.target.is_down.store(is_down, Ordering::Release);
            if *wish != Wish::Open {
                is_down(true);
                // Breakers open by themselves meanwhile.
                tokio::time::sleep(DOWN).await;
            }
            if *wish == Wish::Reset {
                is_down(false);
            }
            let asked = now_micros();
            let code = self.want(*wish, &["--wait", WAIT]).await?;
            let told = now_micros();
            tokio::time::sleep(random.millis(9_000, 14_000)).await;
            let over = now_micros();
            is_down(false);
            if *wish != Wish::Reset {
                self.want(Wish::Reset, &["--no-wait"]).await?;
            }
            self.breakers.write(&[
                wish.word(),
                &asked.to_string(),
                &told.to_string(),
                &code.to_string(),
                &over.to_string(),
                &now_micros().to_string(),
            ]);
            tokio::time::sleep(random.millis(1_000, 4_000)).await;
        }
        Ok(())
    }

    /// Says what is wanted of the target; gives the exit code.
    async fn want(&self, wish: Wish, wait: &[&str]) -> Result<i32, Failed> {
        let target = format!("127.0.0.1:{}", self.target.forced);
        let arguments = ["breakers", wish.word(), &target, "--yes"];
        // Not all shards know: nobody is sure, which the ledger says.
        self.insist(&[&arguments[..], wait].concat(), &[0, PARTLY])
            .await
    }

    /// Lets the tasks go that are out of attempts, now and then, as long as it is polled; ends when it fails.
    pub(crate) async fn let_go(&self) -> Failed {
        loop {
            tokio::time::sleep(BETWEEN).await;
            if let Err(failed) = self.let_go_once().await {
                return failed;
            }
        }
    }

    /// Lets those go that are out of attempts by now; there may be none.
    async fn let_go_once(&self) -> Result<(), Failed> {
        let name = format!("exhausted/{SPENT}");
        let asked = now_micros();
        let code = self.tell(&["release", &name, "--yes", "--no-wait"]).await?;
        let gone = now_micros();
        self.ledger.write(&[
            "release",
            &asked.to_string(),
            &name,
            &gone.to_string(),
            &code.to_string(),
        ]);
        Ok(())
    }

    /// Runs a command of retide's until it ends with one of these exit codes, or again and again; gives the last one.
    async fn insist(&self, arguments: &[&str], codes: &[i32]) -> Result<i32, Failed> {
        let mut code = self.tell(arguments).await?;
        for _ in 0..TRIES {
            // The broker may be away.
            if codes.contains(&code) {
                break;
            }
            tokio::time::sleep(AGAIN).await;
            code = self.tell(arguments).await?;
        }
        Ok(code)
    }

    /// Runs a command of retide's to its end; gives its exit code.
    async fn tell(&self, arguments: &[&str]) -> Result<i32, Failed> {
        let mut command = self.fleet.command(0);
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = tokio::task::spawn_blocking(move || command.status()).await??;
        Ok(status.code().unwrap_or(-1))
    }
}
