//! Holds: tasks that are held for a while, and let go, as people do it.
//!
//! Not what becomes of it, which the checker judges. Invariant: nothing is held any more when the last one has ended.

use std::process::Stdio;
use std::time::Duration;

use crate::Failed;
use crate::fleet::Fleet;
use crate::ledger::{Ledger, now_micros};
use crate::plan::{HELD, Random, SPENT, WARDS};

/// Who holds and lets go.
pub(crate) struct Holder<'a> {
    /// Whose command line it is.
    pub(crate) fleet: &'a Fleet,
    /// What was held and let go.
    pub(crate) ledger: Ledger,
    /// The seed.
    pub(crate) seed: u64,
}

/// What the command line says of a hold that is not there.
const UNKNOWN: i32 = 3;

/// How often a release is tried again.
const TRIES: usize = 60;

/// The pause before that.
const AGAIN: Duration = Duration::from_secs(1);

/// Between two times that tasks are let go which are out of attempts.
const BETWEEN: Duration = Duration::from_secs(12);

// === impl Holder ===

impl Holder<'_> {
    /// Holds the scene, or a key of its tasks, now and then, for as long as tasks are produced.
    pub(crate) async fn hold(&self, tasks: Duration) -> Result<(), Failed> {
        let mut random = Random::new(self.seed, 3);
        let since = std::time::Instant::now();
        let mut number = 0;
        tokio::time::sleep(random.millis(1_000, 4_000)).await;
        while since.elapsed() < tasks {
            let name = format!("hold-{number}");
            let ward = format!("w{}", random.between(0, WARDS));
            let (kind, value) = match number % 2 {
                0 => ("scene", HELD),
                _ => ("key", &*ward),
            };
            number += 1;
            let asked = now_micros();
            let option = format!("--{kind}");
            let arguments = ["hold", &option, value, "--name", &name, "--for", "1h"];
            let code = self
                .tell(&[&arguments[..], &["--yes", "--wait", "30s"]].concat())
                .await?;
            let told = now_micros();
            tokio::time::sleep(random.millis(8_000, 16_000)).await;
            let released = now_micros();
            let arguments = ["release", &name, "--yes", "--no-wait"];
            let mut code_of_release = self.tell(&arguments).await?;
            for _ in 0..TRIES {
                // The broker may be away.
                if [0, UNKNOWN].contains(&code_of_release) {
                    break;
                }
                tokio::time::sleep(AGAIN).await;
                code_of_release = self.tell(&arguments).await?;
            }
            let gone = now_micros();
            self.ledger.write(&[
                "hold",
                &asked.to_string(),
                &name,
                kind,
                value,
                &told.to_string(),
                &code.to_string(),
                &released.to_string(),
                &gone.to_string(),
                &code_of_release.to_string(),
            ]);
            tokio::time::sleep(random.millis(4_000, 10_000)).await;
        }
        Ok(())
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
