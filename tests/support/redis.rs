//! A Redis server as a child process, with users and TLS of the test's own.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{Process, free_port, wait_for};

/// Who may write, who may read, and who looks at it all. Rights are those that the documentation gives.
pub(crate) const WRITER: (&str, &str) = ("writer", "canary-writer-password");
pub(crate) const READER: (&str, &str) = ("reader", "canary-reader-password");
const ADMIN: (&str, &str) = ("admin", "admin");

/// A running server, which keeps nothing on disk.
pub(crate) struct Redis {
    process: Option<Process>,
    folder: TempDir,
    port: u16,
    tls_port: u16,
}

impl Redis {
    /// Starts one on free ports, one of them with TLS.
    ///
    /// # Panics
    /// When it is not installed or does not answer within 30 seconds.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("the system's folder for temporary files is writable");
        let mut redis = Self { process: None, folder, port: free_port(), tls_port: free_port() };
        redis.certify();
        redis.configure();
        redis.restart().await;
        redis
    }

    /// Starts it again, empty, where it was.
    ///
    /// # Panics
    /// As [`Redis::start`].
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        let mut process = Process::start("redis-server", [self.file("redis.conf")], |_| {}).await;
        let client = self.client();
        wait_for(Duration::from_secs(30), "redis-server answers", async || {
            assert!(
                !process.has_ended(),
                "redis-server does not run: run `scripts/parts.sh --all` once, or `apt-get install redis-server`"
            );
            let mut connection = client.get_connection().ok()?;
            redis::cmd("PING").exec(&mut connection).ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Kills it, as `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL");
            process.exit_code(Duration::from_secs(30)).await;
        }
    }

    /// Stops it in its tracks, or has it go on: its connections stay open and say nothing.
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    /// `[shared_cache]` for this server, over TLS.
    pub(crate) fn settings(&self) -> String {
        format!(
            "[shared_cache]\nurl = \"rediss://localhost:{}\"\nca_file = {:?}\npatience = \"2s\"\n",
            self.tls_port,
            self.file("ca.pem")
        )
    }

    /// Where it is without TLS.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A user, for the environment of a process.
    pub(crate) fn login((user, password): (&'static str, &'static str)) -> [(&'static str, &'static str); 2] {
        [("PERENNIAL__SHARED_CACHE__USER", user), ("PERENNIAL__SHARED_CACHE__PASSWORD", password)]
    }

    /// What is under a key, if it is a string.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let mut connection = self.client().get_connection().ok()?;
        redis::cmd("GET").arg(key).query(&mut connection).ok()?
    }

    /// When a key ends, in milliseconds since the epoch; -1 where it does not, -2 where there is none.
    pub(crate) fn ends_at(&self, key: &str) -> i64 {
        self.ask(&["PEXPIRETIME", key])
    }

    /// One command.
    ///
    /// # Panics
    /// When the server refuses it.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.client().get_connection().expect("redis-server answers");
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection).expect("redis-server does it")
    }

    /// Everything that it holds, by key; what is no string is empty.
    pub(crate) fn everything(&self) -> HashMap<String, String> {
        let keys: Vec<String> = self.ask(&["KEYS", "*"]);
        keys.into_iter().map(|key| (key.clone(), self.value(&key).unwrap_or_default())).collect()
    }

    fn client(&self) -> redis::Client {
        let (user, password) = ADMIN;
        redis::Client::open(format!("redis://{user}:{password}@127.0.0.1:{}", self.port)).expect("a URL")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self) {
        let (port, tls_port, folder) = (self.port, self.tls_port, self.folder.path().display());
        let user = |(name, password): (&str, &str), rights: &str| {
            format!("user {name} on >{password} resetkeys {rights}\n")
        };
        let text = format!(
            "bind 127.0.0.1\nport {port}\ntls-port {tls_port}\ntls-auth-clients no\n\
             tls-cert-file {folder}/cert.pem\ntls-key-file {folder}/key.pem\n\
             save \"\"\nappendonly no\ndir {folder}\nuser default off\n{}{}{}",
            user(ADMIN, "~* +@all"),
            user(WRITER, "~perennial:* -@all +ping +eval +getrange +set +del"),
            user(READER, "%R~perennial:* -@all +ping +getrange +pttl"),
        );
        fs::write(self.file("redis.conf"), text).expect("a fresh folder is writable");
    }

    fn certify(&self) {
        let write = |name: &str, text: String| {
            fs::write(self.file(name), text).expect("a fresh folder is writable");
        };
        let authority = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", params.self_signed(&authority).expect("signed").pem());
        let issuer = Issuer::new(params, authority);
        let key = KeyPair::generate().expect("a key");
        let own = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        write("cert.pem", own.signed_by(&key, &issuer).expect("signed").pem());
        write("key.pem", key.serialize_pem());
    }
}
