//! A process of the same user reads neither the daemon's environment nor its memory, and there is no core dump of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Command, Output};

use super::world::SOON;
use crate::support::{Deployment, Process, log_lines, wait_until};

/// `nobody` and its group.
const NOBODY: &str = "65534";

/// Whether these tests run as root, for whom nothing is closed: then the daemon runs as somebody else.
fn is_root() -> bool {
    fs::metadata("/proc/self").expect("Linux").uid() == 0
}

fn as_nobody() -> Vec<String> {
    let ids =
        [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into(), "--".into()];
    if is_root() { [vec!["setpriv".to_owned()], ids.to_vec()].concat() } else { vec!["env".to_owned()] }
}

/// A process of the daemon's user reads a file.
fn read(path: &str) -> Output {
    let words = as_nobody();
    Command::new(&words[0]).args(&words[1..]).args(["cat", path]).output().expect("setpriv, of util-linux")
}

/// Where that user may start it, a folder that it may write to.
fn program(deployment: &Deployment) -> PathBuf {
    let all = |mode: u32| fs::Permissions::from_mode(mode);
    fs::set_permissions(deployment.path(), all(0o777)).expect("the folder is ours");
    let copy = deployment.path().join("perennial");
    fs::copy(env!("CARGO_BIN_EXE_perennial"), &copy).expect("the binary is built");
    let script = deployment.path().join("start");
    let words = as_nobody().join(" ");
    fs::write(&script, format!("#!/bin/sh\nexec {words} {} \"$@\"\n", copy.display())).expect("writable");
    fs::set_permissions(&script, all(0o755)).expect("the file is ours");
    script
}

async fn waits(deployment: &Deployment, words: &[&str]) -> Process {
    let user = as_nobody();
    let words: Vec<&str> = user.iter().map(String::as_str).chain(words.iter().copied()).collect();
    Process::start(words[0], &words[1..], |command| {
        command.current_dir(deployment.path());
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_environment_nor_memory_is_open_to_the_same_user() {
    let deployment = Deployment::embedded("");
    let mut daemon =
        deployment.daemon_of(&program(&deployment), &[("PERENNIAL__SEALING__KEY", &"07".repeat(32))]).await;
    wait_until(SOON, "it runs", async || daemon.errors().contains("warm: all clients")).await;
    let of = |file: &str| format!("/proc/{}/{file}", daemon.pid());

    // Another program of the same user is as open as any.
    let open = waits(&deployment, &["sleep", "600"]).await;
    let path = format!("/proc/{}/environ", open.pid());
    wait_until(SOON, "it has started", async || read(&path).status.success()).await;

    for file in ["environ", "mem", "maps", "auxv"] {
        let metadata = fs::metadata(of(file)).expect("it runs");
        assert_eq!(metadata.uid(), 0, "{file} belongs to its user");
        let refused = read(&of(file));
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{file} is open");
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(why.contains("ermission denied"), "{file}: {why}");
    }
    let user = fs::read_to_string(of("status")).expect("it runs");
    let user = user.lines().find(|line| line.starts_with("Uid:")).expect("a user").to_owned();
    assert!(!user.split_whitespace().any(|id| id == "0"), "it runs as root: {user}");
    let limits = fs::read_to_string(of("limits")).expect("it runs");
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{cores}");
    assert!(!daemon.errors().contains("stay open"), "{}", daemon.errors());
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0, "{}", daemon.errors());
}

#[test]
fn a_file_of_secrets_that_everybody_may_read_is_named() {
    let header = "headers = { x-api-key = \"canary\" }";
    let deployment =
        Deployment::embedded(&format!("[providers.acme]\ntoken_url = \"https://acme.test/token\"\n{header}"));
    let file = deployment.path().join("config/perennial.toml");
    for (mode, is_told) in [(0o644, true), (0o640, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("the file is ours");
        let output = deployment.run(&["run", "--once"]);
        let log = log_lines(&String::from_utf8_lossy(&output.stderr));
        let told =
            log.iter().any(|line| line["file"].as_str().is_some_and(|file| file.ends_with("perennial.toml")));
        assert_eq!((told, output.status.code()), (is_told, Some(0)), "{mode:o}: {log:#?}");
    }
}
