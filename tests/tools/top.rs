//! `perennial top` on a terminal of its own, beside a real daemon, and without a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::support::{
    Auth, Deployment, DynamoLocal, NewClient, Process, Proxy, StrictProvider, wait_for, wait_until,
};
use crate::{SECRET, SOON};

/// A program on a terminal whose other end the test holds: what it writes goes to a screen, as a terminal would show it.
struct Screen {
    keys: File,
    terminal: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
    program: Child,
}

impl Screen {
    fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keys = openpt(flags).expect("a pseudo-terminal");
        grantpt(&keys).and_then(|()| unlockpt(&keys)).expect("its other end may be opened");
        let terminal = ioctl_tiocgptpeer(&keys, flags).expect("its other end opens");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("it takes a size");
        let before = tcgetattr(&terminal).expect("it is a terminal");
        let end = || File::from(terminal.try_clone().expect("a terminal has as many ends as are asked for"));
        command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        let program = command.spawn().expect("the binary is built");
        let keys = File::from(keys);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (mut output, shown) = (keys.try_clone().expect("a file can be cloned"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut some) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).process(&some[..count]);
            }
        });
        Self { keys, terminal, before, screen, program }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it takes keys");
    }

    fn see<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    fn text(&self) -> String {
        self.see(vt100::Screen::contents)
    }

    #[expect(clippy::disallowed_methods, reason = "it polls a real screen, and says what stands there")]
    async fn shows(&self, texts: &[&str]) {
        let shown = tokio::time::timeout(SOON, async {
            while !texts.iter().all(|text| self.text().contains(text)) {
                tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            }
        });
        assert!(shown.await.is_ok(), "waited in vain for {texts:?}:\n{}", self.text());
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("it is a terminal").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    async fn ends(&mut self) -> ExitStatus {
        wait_for(SOON, "it ends", async || self.program.try_wait().expect("a child of ours")).await
    }

    /// # Panics
    /// Where the terminal is not as it was before.
    async fn is_restored(&self) {
        let after = tcgetattr(&self.terminal).expect("it is a terminal");
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
        let other = async || self.see(|screen| !screen.alternate_screen() && !screen.hide_cursor());
        wait_until(SOON, "the first screen is back, and the cursor", other).await;
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.program.kill().ok();
        self.program.wait().ok();
    }
}

/// A fleet of one task with two clients, one of which cannot be refreshed.
async fn fleet(local: &DynamoLocal) -> (Deployment, StrictProvider, Process) {
    let provider = StrictProvider::start(&[]).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    let settings = format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"5s\"\n[refresh]\nspread = \"0s\"\n\
         [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
        provider.token_url()
    );
    let deployment = Deployment::on_dynamo(local, &settings);
    let good = provider.seed("app").await.refresh_token;
    let client = |id: &str, refresh_token: String| NewClient {
        id: id.to_owned(),
        provider: "strict",
        client_id: "app",
        client_secret: Some(SECRET),
        refresh_token: Some(refresh_token),
    };
    deployment.apply(&[client("crm-good", good), client("crm-dead", "never-issued".into())]);
    let daemon = deployment.daemon().await;
    (deployment, provider, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_the_fleet_obeys_its_keys_and_is_left_as_it_was() {
    let local = DynamoLocal::shared().await;
    let (deployment, _provider, _daemon) = fleet(local).await;
    let proxy = Proxy::before(local.endpoint()).await;
    let mut command = deployment.command(&["top", "--interval", "1s"]);
    command.env("PERENNIAL__STORE__ENDPOINT", proxy.url());
    let mut top = Screen::start(command, 120, 30);
    top.shows(&[
        "DEGRADED",
        "1 at work of 1",
        "crm-good",
        "crm-dead",
        "invalid_grant",
        "active",
        "1 idle, 1 dead",
    ])
    .await;
    assert!(top.is_raw() && top.see(vt100::Screen::alternate_screen));

    top.press("/good\r");
    top.shows(&["with \"good\""]).await;
    assert!(!top.text().contains("invalid_grant"), "{}", top.text());
    top.press("\r");
    top.shows(&["why crm-good", "crm-good: idle", "Next"]).await;
    top.press("q");
    top.press("v");
    top.shows(&["findings", "docs/runbook.md#dead-grants"]).await;
    top.press("q");

    proxy.cut();
    top.shows(&["NO ANSWER", "with \"good\"", "crm-good"]).await;
    proxy.mend();
    let answered = async || !top.text().contains("NO ANSWER");
    wait_until(SOON, "the table answers again", answered).await;
    top.press("q");
    assert!(top.ends().await.success());
    top.is_restored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_and_the_terminal_is_as_it_was() {
    let deployment = Deployment::without_table(DynamoLocal::shared().await, "");
    let mut top = Screen::start(deployment.command(&["top", "--interval", "1s"]), 60, 12);
    top.shows(&["NO ANSWER", "nothing read yet"]).await;
    assert!(top.is_raw());
    deployment.ok(&["table", "create"]);
    top.shows(&["BROKEN", "no-task"]).await;
    assert!(!top.text().contains("NO ANSWER"), "{}", top.text());
    let pid = top.program.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert!(top.ends().await.success());
    top.is_restored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_text_or_objects_and_a_pipe_alone_is_an_error() {
    let (deployment, _provider, _daemon) = fleet(DynamoLocal::shared().await).await;
    let object = || -> Value {
        serde_json::from_str(&deployment.ok(&["top", "--once", "--json"])).expect("one object")
    };
    let settled = async || object()["clients"]["idle"] == 1 && object()["clients"]["dead"] == 1;
    wait_until(SOON, "both clients were tried", settled).await;
    let told = object();
    assert_eq!((&told["status"], &told["tasks"][0]["state"]), (&"degraded".into(), &"active".into()));
    assert_eq!(
        (&told["urgent"][0]["client"], &told["urgent"][0]["error"]),
        (&"crm-dead".into(), &"invalid_grant".into())
    );
    // 1.5 units for each client, half a one for each of their shards, and 1 for the tasks. DynamoDB itself would charge
    // for empty shards, too.
    assert_eq!((&told["read_units"], &told["partial"]), (&5.0.into(), &false.into()));

    let text = deployment.ok(&["top", "--once"]);
    assert!(text.contains("DEGRADED") && text.contains("crm-dead") && !text.contains('\u{1b}'), "{text}");
    let partial = deployment.ok(&["top", "--once", "--max-clients", "1"]);
    assert!(partial.contains("partial: 1 clients read so far"), "{partial}");

    let refused = deployment.run(&["top"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("--once") && why.contains("--json"), "{why}");
    assert_eq!(deployment.run(&["top", "--interval", "10ms"]).status.code(), Some(2));
}
