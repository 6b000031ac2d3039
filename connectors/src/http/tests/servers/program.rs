//! How the servers are started, stopped in good order, and made to read their configuration anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

/// Longest wait for a server to take connections, or to be gone.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where the programs of the servers are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/servers");

/// How a server is started and stopped.
#[derive(Debug)]
pub(super) struct Program {
    /// What reports call it.
    pub(super) name: &'static str,
    /// The program and its arguments.
    command: Vec<String>,
    /// What it finds in its environment.
    environment: Vec<(&'static str, String)>,
    /// Where it listens.
    port: u16,
    /// Whether TLS is spoken.
    pub(super) is_secure: bool,
    /// The signal at which it ends in good order, if there is one.
    pub(super) quits: Option<&'static str>,
    /// The signal at which it begins anew without a moment in which nobody listens, if there is one.
    pub(super) reloads: Option<&'static str>,
    /// Whether it is one process, so that nothing of it is left when that is killed.
    pub(super) is_single: bool,
    /// The file with a line for each request that it has processed.
    seen: PathBuf,
}

/// A server that runs until this is dropped.
pub(super) struct Running {
    /// How it was started.
    pub(super) program: Program,
    child: Child,
}

/// Where all servers put their files, and what they have in common.
pub(super) struct Ground<'a> {
    /// The folder.
    pub(super) dir: &'a Path,
    /// Seconds for which they keep idle connections.
    pub(super) keep_alive: u32,
}

// === impl Program ===

impl Program {
    /// The address to call.
    pub(super) fn url(&self) -> String {
        if self.is_secure {
            format!("https://localhost:{}/", self.port)
        } else {
            format!("http://127.0.0.1:{}/", self.port)
        }
    }

    /// Starts it, and waits until it takes connections.
    pub(super) async fn start(self) -> Running {
        let child = self.spawn();
        let mut running = Running {
            program: self,
            child,
        };
        running.wait_until_it_listens().await;
        running
    }

    fn spawn(&self) -> Child {
        Command::new(&self.command[0])
            .args(&self.command[1..])
            .current_dir(FOLDER)
            .env("PORT", self.port.to_string())
            .env("COUNT", &self.seen)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts")
    }
}

// === impl Running ===

impl Running {
    /// The tasks that it has processed, one for each request.
    pub(super) fn seen(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.program.seen).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Has it begin anew while it listens.
    pub(super) fn reload(&self, signal: &str) {
        self.signal(signal);
    }

    /// Stops it by a signal, and starts it again.
    pub(super) async fn restart(&mut self, signal: &str) {
        self.signal(signal);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            assert!(start.elapsed() < PATIENCE, "{} stays", self.program.name);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.child = self.program.spawn();
        self.wait_until_it_listens().await;
    }

    async fn wait_until_it_listens(&mut self) {
        let name = self.program.name;
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.program.port))
            .await
            .is_err()
        {
            let ended = self.child.try_wait().expect("its state");
            assert!(ended.is_none(), "{name} has ended");
            assert!(start.elapsed() < PATIENCE, "{name} is late");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.is_ok(), "{}", self.program.name);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal("-TERM");
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Ground ===

impl Ground<'_> {
    /// All servers that are on the machine.
    pub(super) async fn programs(&self) -> Vec<Program> {
        let mut all = Vec::new();
        if is_there("nginx") {
            all.push(self.nginx("nginx", "", 10).await);
            all.push(self.nginx("nginx, 1,000 requests", "", 1000).await);
            all.push(self.nginx("nginx, TLS", " ssl", 10).await);
            all.push(self.nginx("nginx, HTTP/2", " ssl http2", 10).await);
            let name = "nginx, HTTP/2, 1,000 requests";
            all.push(self.nginx(name, " ssl http2", 1000).await);
        }
        if is_there("lighttpd") {
            all.push(self.lighttpd().await);
        }
        if is_there("node") {
            let command = ["node".to_owned(), "node.js".to_owned()];
            all.push(self.plain("node", &command).await);
            all.push(self.secure("node, HTTP/2", &command).await);
        }
        if is_there("python3") {
            let command = ["python3".to_owned(), "serve.py".to_owned()];
            let python = self.plain("python", &command).await;
            // It ends at once.
            all.push(Program {
                quits: None,
                ..python
            });
        }
        if is_there("uvicorn") {
            all.push(self.uvicorn().await);
        }
        if is_there("gunicorn") {
            all.push(self.gunicorn().await);
        }
        if is_there("go") {
            let binary = self.dir.join("serve").display().to_string();
            // What `go run` starts does not end with it.
            build("go", &["build", "-o", &binary, "serve.go"]);
            all.push(self.plain("go", std::slice::from_ref(&binary)).await);
            all.push(self.secure("go, HTTP/2", &[binary]).await);
        }
        if is_there("java") && is_there("javac") {
            let classes = self.dir.join("classes").display().to_string();
            build("javac", &["-d", &classes, "Serve.java"]);
            let idle = format!("-Dsun.net.httpserver.idleInterval={}", self.keep_alive);
            let command = ["java", &idle, "-cp", &classes, "Serve"].map(str::to_owned);
            all.push(self.plain("java", &command).await);
        }
        all
    }

    /// A server of one process, without TLS.
    async fn plain(&self, name: &'static str, command: &[String]) -> Program {
        Program {
            name,
            command: command.to_vec(),
            environment: vec![("KEEP_ALIVE", self.keep_alive.to_string())],
            port: port().await,
            is_secure: false,
            quits: Some("-TERM"),
            reloads: None,
            is_single: true,
            seen: self.dir.join(folder(name)).with_extension("seen"),
        }
    }

    /// The same with TLS.
    async fn secure(&self, name: &'static str, command: &[String]) -> Program {
        let mut program = self.plain(name, command).await;
        program.is_secure = true;
        for (key, file) in [("CERT", "cert.pem"), ("KEY", "key.pem")] {
            let path = self.dir.join(file).display().to_string();
            program.environment.push((key, path));
        }
        program
    }

    /// nginx, which goes on with its old workers until they are done.
    async fn nginx(&self, name: &'static str, speaks: &str, requests: u32) -> Program {
        let dir = self.dir.join(folder(name));
        fs::create_dir(&dir).expect("a folder");
        let port = port().await;
        let words = [
            ("dir", dir.display().to_string()),
            ("port", port.to_string()),
            ("speaks", speaks.to_owned()),
            ("requests", requests.to_string()),
            ("count", dir.join("seen").display().to_string()),
        ];
        let config = self.fill(&dir, "nginx.conf", &words);
        let (prefix, log) = (dir.display().to_string(), dir.join("error.log"));
        let log = log.display().to_string();
        let command = ["nginx", "-c", &config, "-p", &prefix, "-e", &log].map(str::to_owned);
        Program {
            port,
            is_secure: speaks.starts_with(" ssl"),
            quits: Some("-QUIT"),
            reloads: Some("-HUP"),
            is_single: false,
            seen: dir.join("seen"),
            ..self.plain(name, &command).await
        }
    }

    async fn lighttpd(&self) -> Program {
        let dir = self.dir.join("lighttpd");
        fs::create_dir(&dir).expect("a folder");
        let port = port().await;
        let seen = dir.join("seen");
        let words = [
            ("dir", dir.display().to_string()),
            ("port", port.to_string()),
            ("count", seen.display().to_string()),
        ];
        let config = self.fill(&dir, "lighttpd.conf", &words);
        let command = ["lighttpd", "-D", "-f", &config].map(str::to_owned);
        Program {
            port,
            quits: Some("-INT"),
            // What it has not written of its log by then is lost.
            is_single: false,
            seen,
            ..self.plain("lighttpd", &command).await
        }
    }

    async fn uvicorn(&self) -> Program {
        let port = port().await;
        let (keep_alive, at) = (self.keep_alive.to_string(), port.to_string());
        let command = [
            "uvicorn",
            "--timeout-keep-alive",
            &keep_alive,
            "--port",
            &at,
            "serve:asgi",
        ];
        Program {
            port,
            ..self.plain("uvicorn", &command.map(str::to_owned)).await
        }
    }

    async fn gunicorn(&self) -> Program {
        let port = port().await;
        let (keep_alive, at) = (self.keep_alive.to_string(), format!("127.0.0.1:{port}"));
        let command = [
            "gunicorn",
            "-k",
            "gthread",
            "--threads",
            "8",
            "--keep-alive",
            &keep_alive,
            "-b",
            &at,
            "serve:wsgi",
        ];
        Program {
            port,
            is_single: false,
            ..self.plain("gunicorn", &command.map(str::to_owned)).await
        }
    }

    /// Writes a configuration with these words filled in, and those that all have in common.
    fn fill(&self, dir: &Path, name: &str, words: &[(&str, String)]) -> String {
        let text = fs::read_to_string(Path::new(FOLDER).join(name));
        let mut text = text.expect("a configuration");
        let path = |name: &str| self.dir.join(name).display().to_string();
        let common = [
            ("cert", path("cert.pem")),
            ("key", path("key.pem")),
            ("keep_alive", self.keep_alive.to_string()),
        ];
        for (word, value) in words.iter().chain(&common) {
            text = text.replace(&format!("{{{word}}}"), value);
        }
        let path = dir.join(name);
        fs::write(&path, text).expect("it is written");
        path.display().to_string()
    }
}

/// The name of a server as configurations take it for a path.
fn folder(name: &str) -> String {
    name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "")
}

/// Builds what a server is.
fn build(program: &str, arguments: &[&str]) {
    let built = Command::new(program)
        .args(arguments)
        .current_dir(FOLDER)
        .status();
    assert!(built.expect("it runs").success(), "{program}");
}

/// A port that was free a moment ago.
async fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Whether a program is on the machine.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        eprintln!("{program} is not on this machine: left out");
    }
    found
}
