//! Completions and manual pages are those of the commands that there are, and shells and man(1) take them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::Deployment;

/// Feeds text to a program, and returns what it prints.
#[track_caller]
fn pipe(program: &str, arguments: &[&str], text: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("MANWIDTH", "120")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: install it"));
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program} {arguments:?}:\n{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The commands that the help of a command lists.
fn listed(deployment: &Deployment, command: &[&str]) -> BTreeSet<String> {
    let help = deployment.ok(&[command, &["--help"]].concat());
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name != "help")
        .collect()
}

/// A folder whose configuration is wrong: neither needs one.
fn deployment() -> Deployment {
    let deployment = Deployment::embedded("");
    deployment.configure("[stor]\n");
    deployment
}

#[test]
fn bash_takes_the_completions_and_completes_with_them() {
    let deployment = deployment();
    let script = deployment.ok(&["completions", "bash"]);
    pipe("bash", &["-n"], &script);
    let complete = |words: &str, count: usize| {
        let asked = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={count}; COMPREPLY=()\n\
             _perennial perennial \"${{COMP_WORDS[{count}]}}\" \"${{COMP_WORDS[{count}-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        pipe("bash", &["--norc"], &asked).lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let commands = listed(&deployment, &[]);
    assert!(commands.len() >= 10, "{commands:?}");
    assert!(complete("perennial ''", 1).is_superset(&commands));
    assert_eq!(complete("perennial clients imp", 2), BTreeSet::from(["import-token".to_owned()]));
    assert!(complete("perennial clients list --state ''", 4).contains("in-doubt"));
}

#[test]
fn every_shell_has_completions_and_an_unknown_one_is_a_usage_error() {
    let deployment = deployment();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(deployment.ok(&["completions", shell]).contains("import-token"), "{shell}");
    }
    assert_eq!(deployment.run(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_page_that_man_renders() {
    let deployment = deployment();
    let folder = deployment.path().join("share/man1");
    let told = deployment.ok(&["man", "--out", &folder.display().to_string()]);
    let read = |page: &str| {
        let file = folder.join(format!("{page}.1"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{page}: {error}"));
        pipe("man", &["--warnings=w", "-l", "-"], &text)
    };
    let main = read("perennial");
    assert!(main.contains("2  usage or configuration error"), "laid out as it is in the help:\n{main}");
    let (mut pages, mut above) = (1, vec![(Vec::<String>::new(), main.clone())]);
    while let Some((command, page)) = above.pop() {
        for below in listed(&deployment, &command.iter().map(String::as_str).collect::<Vec<_>>()) {
            let below = [command.clone(), vec![below]].concat();
            let name = format!("perennial-{}", below.join("-"));
            assert!(page.contains(&format!("{name}(1)")), "{name} is not in:\n{page}");
            let own = read(&name);
            assert!(below.len() == 1 || own.contains("--config"), "{name}: common options are told");
            above.push((below, own));
            pages += 1;
        }
    }
    assert!(told.starts_with(&format!("{pages} pages written to ")), "{told}");
    let printed = pipe("man", &["-l", "-"], &deployment.ok(&["man"]));
    assert_eq!(printed, main);
}
