//! `perennial healthcheck`: asks the daemon beside it whether it is well, for images that have no shell and no curl.
//!
//! It is `/healthz`, which speaks of the process alone, and never `/readyz`: an orchestrator kills what is unhealthy, and
//! an outage of the table must not kill a task that holds tokens it could not store yet. No table is opened, and
//! nothing is asked of AWS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{App, output};

/// Ask the daemon on this machine whether it is healthy: 0 if so, else 1 and its complaint. For containers.
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    /// How long to wait for the answer, as in 500ms or 3s.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Healthcheck {
    pub(crate) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let health = &app.config().health;
        if !health.enabled {
            bail!("health.enabled = false: the daemon serves no health check; set it to true");
        }
        if health.address.port() == 0 {
            bail!("health.address has port 0: nobody can know which one the daemon took; name one");
        }
        let url = format!("http://{}/healthz", reachable(health.address));
        let (healthy, answer) = ask(&url, self.timeout).await.with_context(|| {
            format!("no answer from {url}: the daemon does not run, or has another health.address")
        })?;
        if healthy {
            output::line(answer.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        output::note(answer.trim_end());
        Ok(ExitCode::FAILURE)
    }
}

/// A daemon that listens everywhere is asked over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Whether the answer is a good one, and its text.
async fn ask(url: &str, timeout: Duration) -> reqwest::Result<(bool, String)> {
    let client = reqwest::Client::builder()
        // Neither a proxy of the environment nor the platform's certificates have a part in asking oneself.
        .no_proxy()
        .tls_certs_only([])
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()?;
    let response = client.get(url).send().await?;
    Ok((response.status().is_success(), response.text().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_asked_over_loopback_of_its_family() {
        let cases = [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("10.1.2.3:9464", "10.1.2.3:9464"),
        ];
        for (configured, asked) in cases {
            let configured: SocketAddr = configured.parse().expect("an address");
            assert_eq!(reachable(configured).to_string(), asked);
        }
    }
}
