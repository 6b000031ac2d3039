//! What real servers do with kept connections: see `connectors/servers`. Those that are not on the machine are told and left out; what
//! they do is done byte by byte in the other tests.

#![expect(
    clippy::print_stderr,
    reason = "which servers were there is to be seen"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::transport::trusting;
use super::*;

/// Requests at once.
const BURST: usize = 24;

/// Pauses between bursts, in milliseconds: before, about and after the second for which the servers keep idle connections.
const PAUSES: [u64; 9] = [0, 20, 980, 990, 1000, 1010, 1020, 1100, 0];

/// A server that runs until this is dropped.
struct Server {
    name: &'static str,
    child: Child,
    /// The file with a line for each request.
    count: PathBuf,
    /// What it is called by.
    http: Arc<Http>,
}

impl Server {
    /// Requests that it has processed.
    fn count(&self) -> usize {
        fs::read_to_string(&self.count).map_or(0, |text| text.lines().count())
    }

    /// Has it read its configuration anew, if it can: its workers go as soon as they are done.
    fn reload(&self) {
        let pid = self.count.with_file_name("nginx.pid");
        let is_nginx = self.name.starts_with("nginx");
        if let Some(pid) = is_nginx.then(|| fs::read_to_string(pid).ok()).flatten() {
            let sent = Command::new("kill").args(["-HUP", pid.trim()]).status();
            assert!(sent.is_ok(), "{}", self.name);
        }
    }

    /// Sends it a signal.
    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.is_ok(), "{}", self.name);
    }
}

impl Drop for Server {
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

/// Starts a server at `port`, if its program is there.
async fn start(
    name: &'static str,
    program: &str,
    arguments: &[&str],
    (dir, port): (&Path, u16),
) -> Option<Server> {
    if !Path::new(program).is_absolute() && !is_there(program) {
        return None;
    }
    let count = dir.join(format!("{name}.count"));
    let mut http = Config::new(format!("http://127.0.0.1:{port}/"));
    http.timeout = Duration::from_secs(20);
    // lighttpd has no way to answer a POST with 200 by itself.
    http.success = vec![Status::Code(307)];
    let child = Command::new(program)
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
        .env("PORT", port.to_string())
        .env("COUNT", &count)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut server = Server {
        name,
        child,
        count,
        http: Arc::new(Http::try_new(http).expect("valid")),
    };
    let start = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .is_err()
    {
        let ended = server.child.try_wait().expect("its state");
        assert!(ended.is_none(), "{name} has ended");
        assert!(start.elapsed() < Duration::from_mins(2), "{name} is late");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Some(server)
}

/// Writes a configuration with these words filled in.
fn fill(dir: &Path, name: &str, words: &[(&str, String)]) -> String {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("servers")
        .join(name);
    let mut text = fs::read_to_string(from).expect("a configuration");
    for (word, value) in words {
        text = text.replace(&format!("{{{word}}}"), value);
    }
    let path = dir.join(name);
    fs::write(&path, text).expect("it is written");
    path.display().to_string()
}

/// nginx, which is two servers in one.
async fn nginx(dir: &Path) -> Vec<Server> {
    let (one, two) = (port().await, port().await);
    let path = |name: &str| dir.join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let certificate = tls::tests::pem("CERTIFICATE", made.cert.der());
    let key = tls::tests::pem("PRIVATE KEY", &made.signing_key.serialize_der());
    fs::write(path("cert.pem"), certificate).expect("it is written");
    fs::write(path("key.pem"), key).expect("it is written");
    let words = [
        ("dir", dir.display().to_string()),
        ("port", one.to_string()),
        ("port2", two.to_string()),
        ("count", path("nginx.count")),
        ("count2", path("nginx2.count")),
    ];
    let config = fill(dir, "nginx.conf", &words);
    let arguments = ["-c", &config, "-p", &path(""), "-e", &path("error.log")];
    let Some(server) = start("nginx", "nginx", &arguments, (dir, one)).await else {
        return Vec::new();
    };
    let (outbound, _ca) = trusting(made.cert.der());
    let mut config = Config::new(format!("https://localhost:{two}/"));
    config.timeout = Duration::from_secs(20);
    let http = Http::within(config, &outbound).expect("valid");
    // The file of the certificate is read with the first connection.
    let first = http.attempt(Arc::new(fixture::task(&[]))).await.outcome;
    assert_eq!(first, Outcome::Success);
    fs::write(path("nginx2.count"), "").expect("it is emptied");
    let second = Server {
        name: "nginx over HTTP/2",
        // Nothing that has to be ended.
        child: Command::new("true").spawn().expect("it starts"),
        count: dir.join("nginx2.count"),
        http: Arc::new(http),
    };
    vec![second, server]
}

/// Go's server, which is built first: what `go run` starts does not end with it.
async fn go(dir: &Path) -> Option<Server> {
    if !is_there("go") {
        return None;
    }
    let binary = dir.join("serve").display().to_string();
    let built = Command::new("go")
        .args(["build", "-o", &binary, "serve.go"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
        .status();
    assert!(built.expect("it runs").success(), "it is built");
    start("go", &binary, &[], (dir, port().await)).await
}

/// Starts all servers that are there.
async fn servers(dir: &Path) -> Vec<Server> {
    let mut servers = nginx(dir).await;
    let lighttpd = port().await;
    let words = [
        ("dir", dir.display().to_string()),
        ("port", lighttpd.to_string()),
        ("count", dir.join("lighttpd.count").display().to_string()),
    ];
    let config = fill(dir, "lighttpd.conf", &words);
    let bind = port().await;
    let address = format!("127.0.0.1:{bind}");
    let asgi = port().await;
    let asgi_port = asgi.to_string();
    let found = [
        start(
            "lighttpd",
            "lighttpd",
            &["-D", "-f", &config],
            (dir, lighttpd),
        )
        .await,
        start("node", "node", &["node.js"], (dir, port().await)).await,
        start("python", "python3", &["serve.py"], (dir, port().await)).await,
        start(
            "uvicorn",
            "uvicorn",
            &[
                "--timeout-keep-alive",
                "1",
                "--port",
                &asgi_port,
                "serve:asgi",
            ],
            (dir, asgi),
        )
        .await,
        start(
            "gunicorn",
            "gunicorn",
            &[
                "-k",
                "gthread",
                "--threads",
                "8",
                "--keep-alive",
                "1",
                "-b",
                &address,
                "serve:wsgi",
            ],
            (dir, bind),
        )
        .await,
        go(dir).await,
        start(
            "java",
            "java",
            &["-Dsun.net.httpserver.idleInterval=1", "Serve.java"],
            (dir, port().await),
        )
        .await,
    ];
    servers.extend(found.into_iter().flatten());
    servers
}

/// Bursts with pauses between them; the requests, and those that failed.
async fn campaign(server: &Server) -> (usize, Vec<String>) {
    let mut failed = Vec::new();
    let mut count = 0;
    for pause in PAUSES {
        let burst: Vec<_> = (0..BURST)
            .map(|_| {
                let http = Arc::clone(&server.http);
                tokio::spawn(async move { http.attempt(Arc::new(fixture::task(&[]))).await })
            })
            .collect();
        server.reload();
        for one in burst {
            count += 1;
            let outcome = one.await.expect("no panic").outcome;
            failed.extend(outcome.failure().map(ToString::to_string));
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    (count, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attempt_is_lost_to_http_at_real_servers() {
    let dir = TempDir::new().expect("a folder");
    let servers = Arc::new(servers(dir.path()).await);

    let campaigns: Vec<_> = (0..servers.len())
        .map(|at| {
            let servers = Arc::clone(&servers);
            tokio::spawn(async move { campaign(&servers[at]).await })
        })
        .collect();

    for (campaign, server) in campaigns.into_iter().zip(&*servers) {
        let (count, failed) = campaign.await.expect("no panic");
        let name = server.name;
        assert!(failed.is_empty(), "{name}: {failed:?}");
        // Logs are written a moment after the answer.
        let start = Instant::now();
        while server.count() < count && start.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(server.count(), count, "{name}");
        eprintln!("{name}: {count} requests");
    }
}
