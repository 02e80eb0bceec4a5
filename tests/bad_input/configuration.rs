//! Configurations that cannot be used: refused at once, with exit code 2, before anything is touched.

use std::process::Output;

use crate::support::Deployment;

const CANARY: &str = "hunter2-canary";

/// Runs `perennial run` on a configuration that must be refused; returns what it says.
fn refused(text: &str, variables: &[(&str, &str)]) -> String {
    let deployment = Deployment::embedded("");
    deployment.configure(text);
    let output = deployment.run_with(&["run"], variables);
    let errors = told(&output);
    assert_eq!(output.status.code(), Some(2), "{text}\n{errors}");
    assert!(output.stdout.is_empty(), "stdout is for results");
    assert!(!errors.contains(CANARY), "a value was shown: {errors}");
    assert!(!deployment.path().join(".perennial").exists(), "a store was made all the same");
    errors
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn broken_toml_is_refused_by_its_line_and_without_its_text() {
    let broken = format!("[refresh]\nlease = \"90s\"\nwindow = {CANARY}\n");
    let errors = refused(&broken, &[]);
    assert!(errors.contains("perennial.toml") && errors.contains("line 3"), "{errors}");
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_remedy() {
    let wrong = format!(
        "[refresh]\nlease = 7\nwindow = \"soon\"\nleese = \"1s\"\n[health]\nenabled = \"perhaps\"\n\
         [providers.acme]\nauth = \"digest\"\nheaders = {{ x-key = \"{CANARY}\\n\" }}\n[providers.BAD]\n\
         token_url = \"http://acme.test/token\"\n"
    );
    let errors = refused(&wrong, &[("PERENNIAL__STORE__SHARDS", "many"), ("PERENNIAL__STOER__PATH", "x")]);
    for key in [
        "refresh.lease",
        "refresh.window",
        "refresh.leese",
        "health.enabled",
        "providers.acme.auth",
        "providers.acme.token_url",
        "providers.BAD",
        "store.shards",
        "PERENNIAL__STOER__PATH",
    ] {
        assert!(errors.contains(key), "{key} is not named in\n{errors}");
    }
}

#[test]
fn a_lease_that_an_attempt_could_outlive_is_refused() {
    let errors = refused("[refresh]\nlease = \"30s\"\n", &[]);
    assert!(errors.contains("refresh.lease") && errors.contains("request_timeout"), "{errors}");
}

#[test]
fn production_refuses_the_embedded_store_and_ecs_is_production() {
    for variables in [
        [("PERENNIAL__PROFILE", "production"), ("PERENNIAL__LOG__FILTER", "info")],
        [("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x"), ("PERENNIAL__LOG__FILTER", "info")],
    ] {
        let silent = refused("", &variables);
        assert!(silent.contains("store.table") || silent.contains("store.kind"), "{silent}");
        let explicit = refused("[store]\nkind = \"embedded\"\n", &variables);
        assert!(explicit.contains("the embedded store is for development only"), "{explicit}");
    }
}

#[test]
fn a_configuration_that_was_named_and_is_not_there_is_an_error() {
    let deployment = Deployment::embedded("");
    let output = deployment.run(&["--config", "nowhere.toml", "run"]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(told(&output).contains("nowhere.toml"), "{}", told(&output));
}
