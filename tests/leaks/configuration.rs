//! Configurations and clients files that are wrong just where secrets stand.

use super::world::{ASSERTION, HEADER, KEY, QUERY, SECRET};
use crate::support::{Canaries, Deployment};

fn canaries() -> Canaries {
    let mut canaries = Canaries::default();
    [SECRET, HEADER, ASSERTION, QUERY, KEY].into_iter().for_each(|secret| canaries.add(secret));
    canaries
}

/// Values of the wrong type or form, in keys that carry secrets, and secrets in keys that there are not.
pub(crate) fn broken() -> String {
    format!(
        "[store]\nendpoint = \"http://u:{QUERY}@127.0.0.1:1\"\n[sealing]\nkey = [{KEY:?}]\n\
         [providers.a]\ntoken_url = \"http://u:{QUERY}@127.0.0.1/token\"\n\
         headers = {{ x-api-key = [{HEADER:?}], x-other = {{ value = {HEADER:?} }}, x-third = \"{QUERY}\\n\" }}\n\
         params = {{ assertion = [{ASSERTION:?}], client_secret = {SECRET:?} }}\nclient_secret = {SECRET:?}\n\
         [providers.b]\ntoken_url = \"ftp://127.0.0.1/token?api_key={QUERY}\"\nheaders = {SECRET:?}\n\
         params = {ASSERTION:?}\n[providers.c]\ntoken_url = \"https://acme.test/?api_key={QUERY}#x\"\n"
    )
}

#[test]
fn no_wrong_configuration_shows_a_secret() {
    let deployment = Deployment::embedded("");
    let whole = broken();
    let line = |text: &str| format!("[providers.a]\nheaders = {{ x-api-key = {text} }}\n");
    let unreadable = [
        format!("[sealing]\nkey = {KEY}\n"),
        line(SECRET),
        line(&format!("\"{QUERY}")),
        line(&format!("\"{QUERY}\\q\"")),
        format!("{QUERY} = {QUERY}\n[{QUERY}\n"),
        format!("key = \"{QUERY}\"\nkey = \"{QUERY}\"\n"),
    ];
    for text in unreadable.iter().chain([&whole]) {
        deployment.configure(text);
        for arguments in
            [&["config", "check"][..], &["config", "show", "--json"], &["run"], &["status", "--json"]]
        {
            let output = deployment.run_with(arguments, &[("PERENNIAL__SEALING__KEY", QUERY)]);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8_lossy(&told);
            // A name that nobody knows is told, or it could not be found: it is no value.
            let told =
                if text.starts_with(QUERY) { told.replace(&format!(" {QUERY}:"), "") } else { told.into() };
            canaries().assert_absent(&format!("{arguments:?} of {text:?}"), &told);
        }
    }
}

#[test]
fn no_wrong_clients_file_shows_a_secret() {
    let deployment = Deployment::embedded("[providers.acme]\ntoken_url = \"http://127.0.0.1:9/token\"\n");
    let client = |more: &str| {
        format!(
            "[[clients]]\nid = \"one\"\nprovider = \"acme\"\ngrant = \"refresh_token\"\nclient_id = \"app\"\n{more}\n"
        )
    };
    let files = [
        client(&format!(
            "client_secret = {SECRET:?}\nrefresh_token = {QUERY:?}\naccess_token = [{HEADER:?}]"
        )),
        client(&format!("client_secret = {{ value = {SECRET:?} }}\nrefresh_token = {{ env = {SECRET:?} }}")),
        client(&format!("client_secret = {{ env = {SECRET:?}, file = {SECRET:?} }}\nparams = {ASSERTION:?}")),
        client(&format!(
            "params = {{ assertion = [{ASSERTION:?}] }}\ntoken_url = \"http://u:{QUERY}@a.test/\""
        )),
        client(&format!(
            "token_url = \"http://a.test/?api_key={QUERY}\"\nexpires_in = {SECRET:?}\npaused = {SECRET:?}"
        )),
        client(&format!("token_url = \"{QUERY}\"\nresource = {SECRET:?}\nscopes = [7, {SECRET:?}]")),
        client(&format!("client_secret = \"{QUERY}")),
        client(&format!("client_secret = {QUERY}")),
        client(&format!("expires_at = {SECRET:?}")),
        QUERY.to_owned(),
    ];
    for text in &files {
        deployment.secret_file("clients.toml", text);
        for more in [&[][..], &["--json"], &["--format", "json"], &["--dry-run"]] {
            let output = deployment.run(&[&["clients", "apply", "clients.toml"], more].concat());
            assert_ne!(output.status.code(), Some(0), "{text}");
            let told = [output.stdout, output.stderr].concat();
            canaries().assert_absent(&format!("{more:?} of {text}"), &String::from_utf8_lossy(&told));
        }
    }
}

#[test]
fn no_wrong_key_shows_itself() {
    let deployment = Deployment::embedded("");
    let file = deployment.secret_file("key", QUERY);
    let file = file.to_str().expect("UTF-8");
    let both = format!("{KEY},{QUERY}");
    for variable in [
        ("PERENNIAL__SEALING__KEY_FILE", file),
        ("PERENNIAL__SEALING__KEY", QUERY),
        ("PERENNIAL__SEALING__KEY", &both),
    ] {
        let output =
            deployment.run_with(&["config", "check"], &[("PERENNIAL__SEALING__MODE", "local"), variable]);
        assert_ne!(output.status.code(), Some(0), "{variable:?}");
        canaries()
            .assert_absent("a wrong key", &String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
}
