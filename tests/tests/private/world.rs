//! A node, a connector as a process, and an echo server behind it. Tokens for applications are minted from the node's own store,
//! as the node would for a device that logged in from the command line; global tokens are asked for by one.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use portcullis::clock;
use portcullis::config::{Active, Config};
use portcullis::flow::{Facts, Session, UnixTime};
use portcullis::policy::{Decision, decide};
use portcullis::store::Store;
use portcullis::token::Tokens;
use portcullis_tests::access::Machine;
use portcullis_tests::portcullis::Connector;
use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{AUTH, PASSWORD, Plan, Realm, WIKI};
use portcullis_tests::third_party;
use serde_json::{Value, json};

pub const ECHO: &str = "echo.example.com";
pub const OTHER: &str = "other.example.com";
pub const SHELL: &str = "shell.example.com";
/// Its connector is there, its target is not.
pub const DOWN: &str = "down.example.com";
/// Nobody but programs.
pub const ROBOTS: &str = "robots.example.com";
pub const HOSTS: [&str; 6] = [AUTH, ECHO, OTHER, SHELL, DOWN, ROBOTS];

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

pub struct World {
    pub realm: Realm,
    pub connector: Connector,
    /// Where the application `shell` looks for its SSH server.
    pub ssh_port: u16,
    runtime: tokio::runtime::Runtime,
    tokens: Tokens,
    store: Store,
}

impl World {
    pub fn start() -> Self {
        let ssh_port = portcullis_tests::ports::free().unwrap();
        let closed = portcullis_tests::ports::free().unwrap();
        let echo = echo_server();
        let application = |name: &str, kind: &str, host: &str, port: u16, policies: &str, more: &str| {
            format!(
                "[[application]]\nname = \"{name}\"\ntype = \"{kind}\"\nurl = \"https://{host}\"\n\
                 origin = \"127.0.0.1:{port}\"\nconnector = \"hq\"\npolicies = {policies}\n{more}\n"
            )
        };
        let both = "[\"ci\", \"staff\"]";
        let users = "ssh = { users = [\"deploy\"], email_user_domains = [\"example.com\"] }";
        let config = [
            "[[policy]]\nname = \"ci\"\naction = \"service_auth\"\ninclude = [{ service_token = \"ci\" }]\n".into(),
            application("echo", "tcp", ECHO, echo, both, ""),
            application("other", "tcp", OTHER, echo, both, ""),
            application("down", "rdp", DOWN, closed, both, ""),
            application("robots", "tcp", ROBOTS, echo, "[\"ci\"]", ""),
            application("shell", "ssh", SHELL, ssh_port, both, users),
            "[[application]]\nname = \"vault\"\ntype = \"ssh\"\norigin = \"127.0.0.1:1\"\nconnector = \"hq\"\n\
             policies = [\"staff\"]\nssh = { users = [\"root\"] }\n"
                .into(),
        ];
        let realm = Plan::new().unwrap().start(true, &[], &config.concat()).unwrap();
        let token = realm.node.create_connector("hq", &format!("127.0.0.1:{}", realm.port)).unwrap();
        let connector = Connector::enrol(&realm.dir.path().join("connector"), None, &token).unwrap();
        wait_until("the connector", SOON, || {
            let out = realm.node.admin(&["connector", "list"])?;
            Ok(out.lines().any(|line| line.split_whitespace().nth(1) == Some("2")).then_some(()))
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (store, tokens) = runtime.block_on(async {
            let store = Store::open(&realm.node.dir().join("state")).unwrap();
            let authority = format!("{AUTH}:{}", realm.port);
            let tokens = Tokens::load(store.clone(), &authority, clock::now()).await.unwrap();
            (store, tokens)
        });
        Self { realm, connector, ssh_port, runtime, tokens, store }
    }

    /// Logs a local user in with a browser; the session.
    pub fn session(&self, user: &str) -> Arc<Session> {
        let web = self.realm.web(user);
        self.realm.log_in(&web, &self.realm.url(WIKI, "/"), user, PASSWORD).unwrap();
        let sessions = self.runtime.block_on(self.store.live_sessions(clock::now())).unwrap();
        let found = sessions.into_iter().filter(|session| session.person.subject == user);
        Arc::new(found.max_by_key(|session| session.created_at.0).expect("a session"))
    }

    /// Logs `user` in on a machine of theirs with their browser; the global token that `cloudflared` finds there then.
    pub fn org_token(&self, user: &str) -> String {
        let machine = Machine::new(&self.realm, &format!("{user}-machine")).unwrap();
        machine.log_in(&self.realm.web(user), user).unwrap();
        let told = machine.ok(&["token", "--cloudflared"]).unwrap();
        let path = machine.home().join(format!(".cloudflared/{AUTH}-org-token"));
        assert!(told.starts_with(&path.display().to_string()), "{told}");
        std::fs::read_to_string(path).unwrap()
    }

    /// A client's token for an application, as if it had been made at `at`: it lives for a day.
    pub fn app_token_of(&self, session: &Arc<Session>, application: &str, at: UnixTime) -> String {
        let config = Config::load(&self.realm.node.config()).unwrap();
        let active = Active::new(config);
        let application = active.policies.application(application).expect("an application");
        let facts =
            Facts { application, session: Some(session), service: None, address: [127, 0, 0, 1].into() };
        match decide(&active.policies, &facts, at) {
            Decision::Allow(permit) => {
                self.tokens.mint_application_for_client(&permit, None, at).unwrap().expect("a person's")
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn app_token(&self, session: &Arc<Session>, application: &str) -> String {
        self.app_token_of(session, application, clock::now())
    }

    /// A service token's two headers.
    pub fn service_token(&self, name: &str) -> Value {
        let out = self.realm.node.admin(&["service-token", "create", name]).unwrap();
        let part = |key: &str| {
            let line = out.lines().find_map(|line| line.strip_prefix(key)).expect("printed");
            line.trim_start_matches('=').to_owned()
        };
        json!({
            "Cf-Access-Client-Id": part("CF_ACCESS_CLIENT_ID"),
            "Cf-Access-Client-Secret": part("CF_ACCESS_CLIENT_SECRET"),
        })
    }

    /// The file that tells the client of the wire what to do.
    pub fn wire_file(&self, host: &str, headers: &Value, more: Value) -> PathBuf {
        let mut plan = json!({
            "url": format!("wss://{host}:{}/", self.realm.port),
            "address": "127.0.0.1",
            "ca": self.realm.ca.pem(),
            "headers": headers,
        });
        if let (Some(plan), Some(more)) = (plan.as_object_mut(), more.as_object()) {
            plan.extend(more.clone());
        }
        let number = clock::random::<4>().map(|byte| format!("{byte:02x}")).concat();
        let path = self.realm.dir.path().join(format!("wire-{number}.json"));
        std::fs::write(&path, plan.to_string()).unwrap();
        path
    }

    /// A client of the wire, its standard streams open.
    pub fn wire(&self, host: &str, headers: &Value, more: Value) -> Child {
        let mut command = third_party::script(None, "wire.mjs").unwrap();
        command.arg(self.wire_file(host, headers, more));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What the client of the wire says when it sends `input` and reads as much back: the echo, and what it told.
    pub fn try_wire(&self, host: &str, headers: &Value, input: &[u8]) -> (Vec<u8>, String) {
        let mut child = self.wire(host, headers, json!({}));
        let mut stdin = child.stdin.take().unwrap();
        let given = input.to_owned();
        // A client that is refused reads nothing.
        let writing = std::thread::spawn(move || {
            let _ = stdin.write_all(&given);
            stdin
        });
        let mut echo = vec![0; input.len()];
        let read = child.stdout.take().unwrap().read_exact(&mut echo);
        drop(writing.join().unwrap());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (read.map(|()| echo).unwrap_or_default(), told)
    }

    /// The status that a client of the wire is refused with.
    pub fn refused(&self, host: &str, headers: &Value) -> u16 {
        self.refusal(host, headers).expect("refused")
    }

    /// The same, where it may be let in.
    pub fn refusal(&self, host: &str, headers: &Value) -> Option<u16> {
        let (echo, told) = self.try_wire(host, headers, b"x");
        let rest = told.split_once("refused ")?.1;
        assert!(echo.is_empty(), "{told}");
        rest.split_whitespace().next()?.parse().ok()
    }

    /// The last event of `action` about `application`, once its reason is `reason`.
    pub fn event_for(&self, action: &str, application: &str, reason: &str) -> Value {
        wait_until(&format!("{action} event of {application} for {reason}"), SOON, || {
            let events = self.realm.events(action, 0)?;
            let last = events.into_iter().rfind(|event| event["app_name"] == application);
            Ok(last.filter(|event| event["reason"] == reason))
        })
        .unwrap()
    }

    /// The last event of `action` about `application`, once there are `count` of them.
    pub fn last_event(&self, action: &str, application: &str, count: usize) -> Value {
        wait_until(&format!("{count} {action} events of {application}"), SOON, || {
            let events = self.realm.events(action, 0)?;
            let of_it: Vec<Value> =
                events.into_iter().filter(|event| event["app_name"] == application).collect();
            Ok((of_it.len() >= count).then(|| of_it.last().cloned()).flatten())
        })
        .unwrap()
    }
}

/// Runs a command to its end; what it printed, both ways.
pub fn run(command: &mut Command) -> (bool, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// An echo server for as long as the process lives; its port.
fn echo_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let Ok(mut back) = stream.try_clone() else { return };
                let mut stream = stream;
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}
