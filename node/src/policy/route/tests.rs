//! A lenient server is imitated here, step by step and in any order: whatever passes the node must belong to the same
//! application for it.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::flow::{Aud, HostPattern, Kind, Origin, OriginScheme, Web};

fn host() -> Host {
    Host::parse("apps.example.com").unwrap()
}

fn set(paths: &[&str]) -> PolicySet {
    let at = |path: &&str| Application {
        name: (*path).into(),
        aud: Aud::derive(&host(), path),
        policies: Vec::new(),
        providers: Vec::new(),
        session: None,
        launcher: true,
        kind: Kind::Web(Web {
            host: HostPattern::Exact(host()),
            path: Path::parse(path, false).unwrap(),
            origin: Origin {
                scheme: OriginScheme::Http,
                host: host(),
                port: 80,
                connector: None,
                ca: None,
                server_name: None,
                host_header: None,
            },
            allowed_origins: Vec::new(),
            encoded_slash: EncodedSlash::Reject,
        }),
    };
    PolicySet::new(paths.iter().map(at).collect(), Vec::new())
}

/// What passes the node as the path of one application on a host that several share.
fn passes(policies: &PolicySet, raw: &str) -> Option<Path> {
    let path = Path::parse(raw, policies.passes_encoded_slash(&host())).ok()?;
    (policies.route(&host(), &path).is_some() && !policies.has_second_reading(&host(), &path)).then_some(path)
}

#[test]
fn a_path_with_a_policy_for_each_reading_is_refused() {
    let two = set(&["/", "/admin"]);
    for raw in [
        "/admin;x=1/users",
        "/Admin/users",
        "/ADMIN;",
        "/;/admin/users",
        "/;x=1/admin/users",
        "/%3b/admin",
        "/%3Bx/admin",
        "/%253b/admin",
        "/admin%3bx/users",
        "/.;/admin",
        "/.%3b/admin",
        "/%2e%3b/admin",
        "/x/..;x/admin",
        "/x/..%3bx/admin",
        "/x/%252e%252e/admin",
        "/x/%252e%252e%252fadmin",
        "/x/..%20/admin",
        "/x/..%252f/admin",
        "/%5c/admin",
        "/%255cadmin",
        "/x/..%255cadmin",
        "/%20/admin",
        "/%20;/admin",
        "/%09/admin",
        "/%2509/admin",
        "/%2561dmin",
        "/%252561dmin",
        "/admin%20/users",
        "/admin./users",
        "/admin::$INDEX_ALLOCATION/users",
        "/admin%2500/users",
        "/adm%C4%B1n/users",
        "/%C0%AFadmin",
        "/x%252fadmin/%25252525252e",
    ] {
        assert_eq!(passes(&two, raw), None, "{raw}");
    }
    assert_eq!(passes(&set(&["/", "/a/b"]), "/a/;/b"), None);
    assert_eq!(passes(&set(&["/", "/a/b"]), "/a;%252Fx/b"), None, "parameters go before it is decoded");
    assert_eq!(passes(&set(&["/", "/a/b"]), "/a;x%252Fb"), None, "or after");
}

#[test]
fn ordinary_paths_pass() {
    let two = set(&["/", "/admin"]);
    for raw in [
        "/",
        "/admin",
        "/admin/users;x=1",
        "/admin/",
        "/admin/a%20b/100%25/%C3%A9.txt",
        "/page;x=1/Y",
        "/;jsessionid=1",
        "/page/;jsessionid=1",
        "/a%3Bb/c",
        "/a:b",
        "/a%252Fb",
        "/administration",
        "/.well-known/security.txt",
        "/caf%E9",
    ] {
        assert!(passes(&two, raw).is_some(), "{raw}");
    }
    let one = set(&["/"]);
    for raw in ["/admin;x=1", "/Admin", "/a%255cb", "/.../x", "/%252e%252e/x"] {
        assert!(passes(&one, raw).is_some(), "{raw}: one application has one policy");
    }
}

/// What servers are known to do to a path.
#[derive(Debug, Clone, Copy)]
enum Step {
    Decode,
    StripParameters,
    CutAtColon,
    CutAtNul,
    Collapse,
    BackslashIsSlash,
    LowerCase,
    FoldCase,
    TrimBlanks,
    TrimDots,
    ResolveDots,
}

const STEPS: [Step; 11] = [
    Step::Decode,
    Step::StripParameters,
    Step::CutAtColon,
    Step::CutAtNul,
    Step::Collapse,
    Step::BackslashIsSlash,
    Step::LowerCase,
    Step::FoldCase,
    Step::TrimBlanks,
    Step::TrimDots,
    Step::ResolveDots,
];

impl Step {
    fn take(self, path: &str) -> String {
        let each = |of: &dyn Fn(&str) -> String| path.split('/').map(of).collect::<Vec<_>>().join("/");
        match self {
            Self::Decode => percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned(),
            Self::StripParameters => each(&|segment| segment.split(';').next().unwrap().to_owned()),
            Self::CutAtColon => each(&|segment| segment.split(':').next().unwrap().to_owned()),
            Self::CutAtNul => path.split('\0').next().unwrap().to_owned(),
            Self::Collapse => {
                let kept: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
                format!("/{}", kept.join("/"))
            }
            Self::BackslashIsSlash => path.replace('\\', "/"),
            Self::LowerCase => path.to_lowercase(),
            Self::FoldCase => path.to_uppercase().to_lowercase(),
            Self::TrimBlanks => each(&|segment| segment.trim().to_owned()),
            Self::TrimDots => each(&|segment| match segment {
                "." | ".." => segment.to_owned(),
                _ => segment.trim_end_matches(['.', ' ']).to_owned(),
            }),
            Self::ResolveDots => {
                let mut kept = Vec::new();
                for segment in path.split('/').skip(1) {
                    match segment {
                        "." => {}
                        ".." => drop(kept.pop()),
                        _ => kept.push(segment),
                    }
                }
                format!("/{}", kept.join("/"))
            }
        }
    }
}

/// The application of a path for a server that has done with it what it does.
fn meant<'a>(paths: &[&'a str], read: &str) -> &'a str {
    let segments = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let read = segments(read);
    let holds = |path: &&&str| **path == "/" || read.starts_with(&segments(path));
    paths.iter().filter(holds).max_by_key(|path| path.len()).unwrap()
}

const TOKENS: [&str; 36] = [
    "/", "/", "/", "a", "b", "A", "a", "b", "c", ";", ";x", ".", "..", ":", "%3b", "%2e", "%2F", "%5c",
    "%20", "%09", "%00", "%25", "%25", "25", "2f", "3b", "2e", "5c", "20", "09", "00", "61", "%61", "%c0%af",
    "%c3%a9", "%e9",
];
const SHARED: [&[&str]; 4] = [&["/", "/a"], &["/", "/a", "/a/b"], &["/", "/a/b"], &["/", "/a", "/b"]];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_passes_belongs_to_the_same_application_for_every_server(
        tokens in proptest::collection::vec(select(&TOKENS[..]), 1..14),
        steps in proptest::collection::vec(select(&STEPS[..]), 0..8),
        shared in select(&SHARED[..]),
    ) {
        let raw = format!("/{}", tokens.concat());
        let policies = set(shared);
        let Some(path) = passes(&policies, &raw) else { return Ok(()) };
        let routed = policies.route(&host(), &path).unwrap().path();
        let read = steps.iter().fold(path.to_string(), |path, step| step.take(&path));
        let other = meant(shared, &read);
        prop_assert_eq!(other, routed, "{} by {:?} is {}", raw, steps, read);
    }
}
