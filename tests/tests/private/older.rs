//! What older versions of the client do before they speak the wire: find the application by redirects, and turn a global
//! token into one for the application. Every request is one of the client's own: no jar, no `Accept`.

use portcullis_tests::web::{Reply, Web};

use crate::world::{DOWN, ECHO, HOSTS, ROBOTS, World};

/// The client: it keeps no cookies, and sends the ones it means to.
fn ask(world: &World, url: &str, method: &str, headers: &[String]) -> Reply {
    let jar = world.realm.dir.path().join("none.jar");
    let _ = std::fs::remove_file(&jar);
    let web = Web::bare(&jar, &world.realm.ca_file, world.realm.port, &HOSTS).header("Accept:");
    let mut args = if method == "HEAD" { vec!["--head".to_owned()] } else { Vec::new() };
    for header in headers {
        args.extend(["--header".to_owned(), header.clone()]);
    }
    let reply = web.send(url, &args).unwrap();
    let _ = std::fs::remove_file(&jar);
    reply
}

/// A browser that knows the hosts of this world, with the jar of a realm's browser.
pub fn browser(world: &World, name: &str) -> Web {
    let jar = world.realm.dir.path().join(format!("{name}.jar"));
    Web::new(&jar, &world.realm.ca_file, world.realm.port, &HOSTS)
}

fn cookie(reply: &Reply, name: &str) -> Option<String> {
    let prefix = format!("{name}=");
    let line = reply.header("set-cookie").into_iter().find(|line| line.starts_with(&prefix))?;
    Some(line.split(';').next()?.to_owned())
}

fn query<'u>(url: &'u str, name: &str) -> Option<&'u str> {
    url.split_once('?')?.1.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[test]
fn an_application_is_found_by_redirects_and_headers() {
    let world = World::start();
    let first = ask(&world, &world.realm.url(ECHO, "/"), "HEAD", &[]);
    assert_eq!(first.status, 302);
    let login = first.redirect().unwrap();
    assert!(login.contains("/cdn-cgi/access/login/"), "{login}");
    let aud = query(&login, "kid").unwrap().to_owned();
    assert_eq!(aud.len(), 64);
    let last = ask(&world, &login, "HEAD", &[]);
    assert_eq!(last.status, 200, "the response that ends the redirects");
    assert_eq!(
        (last.header("cf-access-domain"), last.header("cf-access-aud")),
        (vec![ECHO], vec![aud.as_str()])
    );

    // Where nobody logs in there are no redirects: the refusal itself says which application it is.
    let refused = ask(&world, &world.realm.url(ROBOTS, "/"), "HEAD", &[]);
    assert_eq!((refused.status, refused.header("cf-access-domain")), (403, vec![ROBOTS]));
    assert_eq!(refused.header("cf-access-aud")[0].len(), 64);
    // A program that does not want a page gets no redirect.
    assert_eq!(
        ask(&world, &world.realm.url(ECHO, "/"), "GET", &["Accept: application/json".into()]).status,
        401
    );
}

#[test]
fn a_global_token_becomes_one_for_the_application() {
    let world = World::start();
    let global = world.org_token("ann");
    let org = format!("Cookie: CF_Authorization={global}");

    let first = ask(&world, &world.realm.url(ECHO, "/"), "HEAD", &[]);
    let second = ask(&world, &first.redirect().unwrap(), "HEAD", std::slice::from_ref(&org));
    assert_eq!(second.status, 302, "nobody is asked anything");
    let authorized = second.redirect().unwrap();
    assert!(
        authorized.starts_with(&world.realm.url(ECHO, "/cdn-cgi/access/authorized?code=")),
        "{authorized}"
    );
    assert_eq!(second.cookies(), [""; 0], "and no browser is logged in");
    let logins = world.realm.events("login", 3).unwrap();
    let said = |event: &&serde_json::Value| event["detail"] == "by a device's global token";
    assert_eq!(logins.iter().filter(said).count(), 1, "{logins:?}");
    let by_browser = ask(&world, &first.redirect().unwrap(), "GET", std::slice::from_ref(&org));
    assert_eq!(by_browser.status, 200, "a browser gets the login page");
    let mark = cookie(&first, "CF_AppSession").unwrap();
    let third = ask(&world, &authorized, "HEAD", &[format!("Cookie: {mark}")]);
    assert_eq!(third.cookies(), ["CF_Authorization"], "no binding: it is no browser's");
    let line = third.header("set-cookie")[0];
    assert!(line.contains("; Expires="), "{line}");
    let token = cookie(&third, "CF_Authorization").unwrap();
    let token = token.trim_start_matches("CF_Authorization=");

    let check = world.realm.url(ECHO, "/?cloudflared_token_check=true");
    let check = |token: &str| ask(&world, &check, "GET", &[format!("Cf-Access-Token: {token}")]).status;
    assert_eq!((check(token), check("bad"), check(&global)), (200, 302, 302));
    let (echo, told) = world.try_wire(ECHO, &serde_json::json!({ "Cf-Access-Token": token }), b"hello");
    assert_eq!(echo, b"hello", "{told}");

    // A code is good once, for the mark it was made for, on its host.
    assert_eq!(ask(&world, &authorized, "HEAD", &[format!("Cookie: {mark}")]).status, 400);
    let again =
        || ask(&world, &first.redirect().unwrap(), "HEAD", std::slice::from_ref(&org)).redirect().unwrap();
    let stolen = ask(&world, &again(), "HEAD", &["Cookie: CF_AppSession=other".into()]);
    assert_eq!((stolen.status, stolen.cookies()), (302, vec![]), "the login starts anew");
    let elsewhere = again().replace(ECHO, DOWN);
    assert_eq!(ask(&world, &elsewhere, "HEAD", &[format!("Cookie: {mark}")]).status, 400);
    // The client's token as a browser's cookie is worth nothing.
    let as_cookie = format!("Cookie: CF_Authorization={token}");
    assert_eq!(ask(&world, &world.realm.url(ECHO, "/"), "GET", &[as_cookie]).status, 302);
    let launcher =
        ask(&world, &world.realm.url("access.example.com", "/"), "GET", std::slice::from_ref(&org));
    assert!(launcher.status == 302 || !launcher.body.contains("ann@example.com"), "{}", launcher.status);

    let of_eve = format!("Cookie: CF_Authorization={}", world.org_token("eve"));
    let denied = ask(&world, &first.redirect().unwrap(), "HEAD", &[of_eve]);
    assert_eq!((denied.status, denied.header("cf-access-domain")), (403, vec![ECHO]));

    world.realm.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
    assert_eq!(check(token), 302);
    let over = ask(&world, &first.redirect().unwrap(), "HEAD", &[org]);
    assert_eq!(over.status, 200, "the login page");
}
