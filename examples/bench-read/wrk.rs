//! Load by wrk, and what it says of it.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// Clients in an order that no cache foresees. `wrk` calls `done` at the end.
const SCRIPT: &str = r#"
local number, clients, tail = 0, CLIENTS, " HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer KEY\r\nCLOSE\r\n"
request = function()
    number = (number + 7919) % clients
    return "GET /v1/token/client-" .. number .. tail
end
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests":%d,"micros":%d,"failed":%d,"p50":%d,"p99":%d}\n',
        summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"#;

/// What is asked, and how.
pub(crate) struct Load<'a> {
    pub(crate) connections: u32,
    pub(crate) closes: bool,
    pub(crate) seconds: u32,
    pub(crate) clients: usize,
    pub(crate) key: &'a str,
}

/// What came of it.
pub(crate) struct Run {
    requests: f64,
    seconds: f64,
    pub(crate) failed: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// The server's processor time.
    pub(crate) cpu: Duration,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.requests / self.seconds
    }

    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests
    }
}

impl Load<'_> {
    /// # Panics
    /// Where there is no wrk.
    pub(crate) fn run(&self, url: &str) -> Run {
        let mut script = tempfile::Builder::new().suffix(".lua").tempfile().unwrap();
        let close = if self.closes { "Connection: close\\r\\n" } else { "" };
        let text = SCRIPT
            .replace("CLIENTS", &self.clients.to_string())
            .replace("HOST", url.trim_start_matches("http://"))
            .replace("KEY", self.key)
            .replace("CLOSE", close);
        script.write_all(text.as_bytes()).unwrap();
        let (connections, length) = (self.connections.to_string(), format!("{}s", self.seconds));
        let ended = Command::new("wrk")
            .args(["-t1", "-c", &connections, "-d", &length, "-s"])
            .arg(script.path())
            .arg(url)
            .output()
            .expect("wrk is installed: apt-get install wrk");
        let output = String::from_utf8_lossy(&ended.stdout);
        let told =
            output.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()).expect("wrk ends well");
        let number = |name: &str| told[name].as_f64().unwrap();
        Run {
            requests: number("requests"),
            seconds: number("micros") / 1e6,
            failed: told["failed"].as_u64().unwrap(),
            p50_us: number("p50"),
            p99_us: number("p99"),
            cpu: Duration::ZERO,
        }
    }
}
