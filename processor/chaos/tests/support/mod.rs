//! What these tests need besides Rust.

use std::env;
use std::process::{Command, Stdio};

/// The folder of Kafka's jars; none where Java or Maven is missing, which is said, and a failure if Kafka is required.
pub(crate) fn jars() -> Option<String> {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/kafka/run");
    let output = Command::new(run)
        .arg("--jars")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap().trim_end().into());
    }
    assert!(
        env::var("RETIDE_REQUIRE_KAFKA").as_deref() != Ok("1"),
        "RETIDE_REQUIRE_KAFKA=1, but there is no Kafka: see the message of docker/kafka/run above"
    );
    eprintln!("NOT TESTED: install Java 17 and Maven");
    None
}
