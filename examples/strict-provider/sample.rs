//! Grants that are there from the start, with a clients file for `perennial clients apply`.
//!
//! Whoever tries the program out in containers has neither a browser to consent in nor a shell to copy tokens with: the
//! provider writes what it has granted into a folder that both see.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::authority::Client;
use crate::http::Provider;

/// The one application of the sample. Nothing that holds anything of value has such a secret.
const APPLICATION: (&str, &str) = ("sample-app", "sample-secret");

/// Grants to `count` clients, and writes `clients.toml` and its secrets into `folder`, over what an earlier run left.
pub(crate) fn grant(provider: &Provider, count: u32, folder: &Path) -> io::Result<()> {
    let (application, secret) = APPLICATION;
    provider.register(Client::basic(application, secret));
    fs::create_dir_all(folder)?;
    let secret_file = folder.join("sample-app.secret");
    fs::write(&secret_file, secret)?;
    let mut clients = String::new();
    for number in 0..count {
        // Every third is a machine of its own; the others are customers who have consented.
        let machine = number % 3 == 2;
        let (id, kind) = match machine {
            true => (format!("service-{number:03}"), "client_credentials"),
            false => (format!("customer-{number:03}"), "refresh_token"),
        };
        write!(
            clients,
            "[[clients]]\nid = \"{id}\"\nprovider = \"sample\"\ngrant = \"{kind}\"\nclient_id = \"{application}\"\n\
             client_secret = {{ file = {secret_file:?} }}\n"
        )
        .expect("a string takes everything");
        if !machine {
            let token_file = folder.join(format!("{id}.token"));
            let granted = provider.consent(application).expect("it was registered above");
            fs::write(&token_file, granted.refresh_token.unwrap_or_default())?;
            writeln!(clients, "refresh_token = {{ file = {token_file:?} }}")
                .expect("a string takes everything");
        }
        clients.push('\n');
    }
    fs::write(folder.join("clients.toml"), clients)
}
