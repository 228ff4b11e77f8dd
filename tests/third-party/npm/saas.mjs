// Applications elsewhere that sign people in with the node: npm `openid-client`, keeping to the rules, and raw requests that
// do not. Standard input: {"scenario", "port", "password", "ca", "secret", "key", "other", "logout"?, "admin"}.
//   `keys`    prints a pair of keys: {"public", "private"}
//   others    print {"allowed", "denied"}: how many sign-ins the log must have of each
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import assert from 'node:assert/strict';
import https from 'node:https';
import * as jose from 'jose';
import * as oidc from 'openid-client';

const options = JSON.parse(readFileSync(0, 'utf8'));
const AUTH = 'access.example.com';
const here = `https://${AUTH}:${options.port}`;
const issuerOf = (id) => `${here}/cdn-cgi/access/sso/oidc/${id}`;
const CB = 'https://git.elsewhere.test/cb', SPA = 'https://spa.elsewhere.test/cb';
const BYE = 'https://git.elsewhere.test/bye';
const JWT_BEARER = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer';
const count = { allowed: 0, denied: 0 };
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const form = (fields) => new URLSearchParams(fields).toString();

// One request to the node, whatever name it has.
function send(url, { method = 'GET', headers = {}, body } = {}) {
  const { hostname, pathname, search } = new URL(url);
  return new Promise((resolve, reject) => {
    const request = https.request({
      agent: false, host: '127.0.0.1', port: options.port, servername: hostname, path: pathname + search, method, ca: options.ca,
      headers: { ...headers, host: `${hostname}:${options.port}`, ...(body ? { 'content-length': Buffer.byteLength(body) } : {}) },
    }, (reply) => {
      const parts = [];
      reply.on('data', (part) => parts.push(part)).on('error', reject);
      reply.on('end', () => resolve({ status: reply.statusCode, headers: reply.headers, body: Buffer.concat(parts).toString() }));
    });
    request.on('error', (error) => reject(new Error(`${method} ${url.slice(0, 300)} with ${body?.length ?? 0} bytes: ${error.message}`)));
    request.end(body);
  });
}

class Browser {
  cookies = new Map();
  constructor(from) {
    if (from) this.cookies = new Map(from.cookies);
  }
  async request(url, { crossSite = false, ...rest } = {}) {
    const cookie = [...this.cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const headers = { accept: 'text/html', ...(cookie && !crossSite ? { cookie } : {}), ...rest.headers };
    const reply = await send(url, { ...rest, headers });
    for (const line of reply.headers['set-cookie'] ?? []) {
      const [name, value] = line.split(';')[0].split(/=(.*)/s);
      if (line.includes('Max-Age=0')) this.cookies.delete(name);
      else this.cookies.set(name, value);
    }
    return reply;
  }
  post(url, fields, more = {}) {
    const headers = { 'content-type': 'application/x-www-form-urlencoded' };
    return this.request(url, { method: 'POST', body: form(fields), headers, ...more });
  }
  // Follows redirects as long as they stay at the node; the last address and answer.
  async follow(url, reply) {
    reply ??= await this.request(url);
    for (let hops = 0; hops < 10 && reply.headers.location; hops++) {
      const next = new URL(reply.headers.location, url).href;
      if (!next.startsWith(here)) return { url: next, reply };
      url = next;
      reply = await this.request(url);
    }
    return { url, reply };
  }
  // The same, logging in where the node asks to.
  async through(url, user, reply) {
    let at = await this.follow(url, reply);
    if (at.reply.status === 200 && at.reply.body.includes('name="password"')) {
      const ticket = at.reply.body.match(/name="ticket" value="([^"]+)"/)[1];
      const answer = await this.post(at.url, { ticket, username: user, password: options.password });
      at = await this.follow(at.url, answer);
    }
    return at;
  }
}

const fetcher = async (url, { method, headers, body }) => {
  const reply = await send(url, { method, headers: Object.fromEntries(new Headers(headers)), body: body?.toString() });
  return new Response(reply.body || null, { status: reply.status, headers: { 'content-type': reply.headers['content-type'] ?? '', 'www-authenticate': reply.headers['www-authenticate'] ?? '' } });
};
const discover = (id, auth, metadata) =>
  oidc.discovery(new URL(issuerOf(id)), id, metadata, auth, { [oidc.customFetch]: fetcher });

const verifier = () => oidc.randomPKCECodeVerifier();
const challengeOf = (text) => oidc.calculatePKCECodeChallenge(text);

// A whole sign-in by the library.
async function signIn(config, browser, user, parameters, redirect = CB) {
  const [code_verifier, state, nonce] = [verifier(), oidc.randomState(), oidc.randomNonce()];
  const url = oidc.buildAuthorizationUrl(config, {
    redirect_uri: redirect, scope: 'openid email profile groups offline_access', state, nonce,
    code_challenge: await challengeOf(code_verifier), code_challenge_method: 'S256', ...parameters,
  });
  const back = await browser.through(url.href, user);
  assert.ok(back.url.startsWith(redirect), `${back.url} ${back.reply.status} ${back.reply.body}`);
  count.allowed++;
  return oidc.authorizationCodeGrant(config, new URL(back.url), {
    pkceCodeVerifier: code_verifier, expectedState: state, expectedNonce: nonce, idTokenExpected: true,
    ...(parameters?.max_age ? { maxAge: Number(parameters.max_age) } : {}),
  });
}

const privateKey = (jwk, alg = 'ES256') => jose.importJWK(jwk, alg);
const secret = () => options.secret;

const scenarios = {
  async keys() {
    const pair = await jose.generateKeyPair('ES256', { extractable: true });
    const own = { kid: 'one', alg: 'ES256' };
    console.log(JSON.stringify({
      public: { ...(await jose.exportJWK(pair.publicKey)), ...own },
      private: { ...(await jose.exportJWK(pair.privateKey)), ...own },
    }));
    process.exit(0);
  },

  // Every way of authentication, and all that follows a sign-in.
  async honest() {
    const clients = [
      ['git', oidc.ClientSecretBasic(secret()), CB],
      ['git', oidc.ClientSecretPost(secret()), CB],
      ['keys', oidc.PrivateKeyJwt({ key: await privateKey(options.key), kid: 'one' }), CB],
      ['spa', oidc.None(), SPA],
    ];
    const browser = new Browser();
    const subjects = {};
    for (const [id, auth, redirect] of clients) {
      const config = await discover(id, auth);
      assert.equal(config.serverMetadata().authorization_response_iss_parameter_supported, true);
      const tokens = await signIn(config, browser, 'ann', { acr_values: 'mfa', login_hint: 'ann' }, redirect);
      const claims = tokens.claims();
      const announced = config.serverMetadata().claims_supported;
      assert.deepEqual(Object.keys(claims).filter((name) => !announced.includes(name)), [], 'announced');
      assert.deepEqual(
        [claims.iss, claims.aud, claims.email, claims.email_verified, claims.groups, claims.acr],
        [issuerOf(id), id, 'ann@example.com', true, ['ops'], 'sfa'],
      );
      assert.ok(claims.auth_time && claims.amr.length && claims.sid && claims.at_hash);
      assert.equal(subjects[id] ?? claims.sub, claims.sub, 'stable');
      subjects[id] = claims.sub;
      const told = await oidc.fetchUserInfo(config, tokens.access_token, claims.sub);
      assert.deepEqual([told.email, told.name, told.groups], ['ann@example.com', claims.name, ['ops']]);
      if (id === 'git') assert.deepEqual([claims.login, told.tenant, told.roles], ['ann', 'acme', ['ops']]);

      const next = await oidc.refreshTokenGrant(config, tokens.refresh_token);
      count.allowed++;
      assert.equal(next.claims().sub, claims.sub);
      assert.equal(next.claims().auth_time, claims.auth_time);
      const less = await oidc.refreshTokenGrant(config, next.refresh_token, { scope: 'openid' });
      count.allowed++;
      assert.equal((await oidc.fetchUserInfo(config, less.access_token, claims.sub)).email, undefined);
      if (id !== 'spa') {
        const state = await oidc.tokenIntrospection(config, less.access_token);
        assert.deepEqual([state.active, state.client_id, state.sub, state.scope], [true, id, claims.sub, 'openid']);
        assert.equal((await oidc.tokenIntrospection(config, less.refresh_token)).active, true);
        assert.equal((await oidc.tokenIntrospection(config, next.refresh_token)).active, false, 'spent');
      }
      await oidc.tokenRevocation(config, less.refresh_token);
      await assert.rejects(oidc.fetchUserInfo(config, less.access_token, claims.sub));
      count.denied++;
      await assert.rejects(oidc.refreshTokenGrant(config, less.refresh_token), { error: 'invalid_grant' });
      count.denied++;

      // A refresh token that comes again ends them all.
      const first = await signIn(config, browser, 'ann', {}, redirect);
      const second = await oidc.refreshTokenGrant(config, first.refresh_token);
      count.allowed++;
      await assert.rejects(oidc.refreshTokenGrant(config, first.refresh_token), { error: 'invalid_grant' });
      await assert.rejects(oidc.refreshTokenGrant(config, second.refresh_token), { error: 'invalid_grant' });
      await assert.rejects(oidc.fetchUserInfo(config, second.access_token, claims.sub));
      count.denied += 3;
    }
    assert.equal(new Set(Object.values(subjects)).size, 3, 'pairwise');

    const config = await discover('git', oidc.ClientSecretPost(secret()));
    const short = await signIn(config, browser, 'ann', { scope: 'openid future' });
    assert.deepEqual([short.refresh_token, short.scope, short.claims().email], [undefined, 'openid', undefined]);
    const aged = await signIn(config, browser, 'ann', { max_age: '3600', prompt: 'consent' });

    // With prompt=login, and with a login that is too old, the person proves anew who they are.
    const before = aged.claims();
    await pause(2100);
    for (const again of [{ prompt: 'login' }, { max_age: '1' }, { max_age: '0' }]) {
      const url = oidc.buildAuthorizationUrl(config, { redirect_uri: CB, scope: 'openid', ...again });
      const asked = await browser.follow(url.href);
      assert.ok(asked.reply.body.includes('name="password"'), `${JSON.stringify(again)} ${asked.url}`);
      const none = await browser.request(`${url.href.replace('prompt=login', '')}&prompt=none`);
      const answer = again.prompt ? /\?code=/ : /error=login_required/;
      assert.match(none.headers.location, answer);
      again.prompt ? count.allowed++ : count.denied++;
    }
    const after = (await signIn(config, browser, 'ann', { prompt: 'login' })).claims();
    assert.ok(after.sid !== before.sid && after.auth_time > before.auth_time && after.sub === before.sub);
  },

  // A form of another site brings no cookie; a form_post answer goes to the verified address alone.
  async forms() {
    const config = await discover('git', oidc.ClientSecretBasic(secret()));
    const browser = new Browser();
    await signIn(config, browser, 'ann');
    const [state, code_verifier] = [`"><script>x</script>`, verifier()];
    const ask = {
      client_id: 'git', redirect_uri: CB, response_type: 'code', scope: 'openid', state, response_mode: 'form_post',
      code_challenge: await challengeOf(code_verifier), code_challenge_method: 'S256',
    };
    const posted = await browser.post(`${issuerOf('git')}/authorization`, ask, { crossSite: true });
    assert.equal(posted.status, 303);
    assert.ok(posted.headers.location.startsWith('/cdn-cgi/access/sso/oidc/git/resume?request='), posted.headers.location);
    assert.ok(posted.headers['set-cookie'].every((line) => line.includes('SameSite=Lax')));
    const stranger = await new Browser().request(here + posted.headers.location);
    assert.equal(stranger.status, 400, 'the request is in the browser that made it');
    count.denied++;
    const page = await browser.request(here + posted.headers.location);
    assert.equal(page.status, 200);
    count.allowed++;
    assert.ok(!page.body.includes('<script>x'), page.body);
    assert.match(page.headers['content-security-policy'], /form-action https:\/\/git\.elsewhere\.test;/);
    const nonce = page.headers['content-security-policy'].match(/script-src 'nonce-([^']+)'/)[1];
    assert.ok(page.body.includes(`<script nonce="${nonce}">`) && page.body.includes(`action="${CB}"`));
    const code = page.body.match(/name="code" value="([^"]+)"/)[1];
    assert.ok(page.body.includes(`name="iss" value="${issuerOf('git')}"`));
    const tokens = await send(`${issuerOf('git')}/token`, {
      method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: form({ grant_type: 'authorization_code', code, redirect_uri: CB, code_verifier, client_id: 'git', client_secret: secret() }),
    });
    assert.equal(tokens.status, 200, tokens.body);
    assert.equal(tokens.headers['cache-control'], 'no-store');

    // A navigation that began with the login form ends in a page of the node's, since browsers hold redirects after a form
    // against its policy.
    const other = new Browser();
    const asked = await other.follow(`${issuerOf('git')}/authorization?${form({ ...ask, response_mode: 'query' })}`);
    const ticket = asked.reply.body.match(/name="ticket" value="([^"]+)"/)[1];
    let answer = await other.post(asked.url, { ticket, username: 'ann', password: options.password });
    assert.equal(answer.status, 303);
    answer = await other.request(answer.headers.location, { headers: { 'sec-fetch-mode': 'navigate' } });
    assert.equal(answer.status, 200);
    count.allowed++;
    assert.ok(answer.body.includes('You are signed in') && answer.body.includes(`url=${CB}?code=`), answer.body);
    assert.equal((await other.request(`${here}/cdn-cgi/access/sso/oidc/git/resume?request=0123456789abcdef`)).status, 400);
    count.denied++;
  },

  // Logout by the application, and every application that has a login is told of it.
  async logout() {
    const told = [];
    let failures = 1;
    const server = https.createServer({ cert: readFileSync(options.logout.cert), key: readFileSync(options.logout.key) }, (request, response) => {
      const parts = [];
      request.on('data', (part) => parts.push(part)).on('end', () => {
        if (failures-- > 0) return response.writeHead(500).end();
        told.push(new URLSearchParams(Buffer.concat(parts).toString()).get('logout_token'));
        response.writeHead(200).end();
      });
    });
    await new Promise((resolve) => server.listen(options.logout.port, '127.0.0.1', resolve));
    const config = await discover('git', oidc.ClientSecretPost(secret()));
    const jwks = jose.createLocalJWKSet(JSON.parse((await send(`${issuerOf('git')}/jwks`)).body));
    const isTold = async (tokens) => {
      for (let tries = 0; tries < 200 && told.length === 0; tries++) await pause(100);
      assert.equal(told.length, 1);
      const { payload, protectedHeader } = await jose.jwtVerify(told.pop(), jwks, { issuer: issuerOf('git'), audience: 'git', typ: 'logout+jwt' });
      const { sub, sid } = tokens.claims();
      assert.deepEqual([payload.sub, payload.sid, payload.nonce], [sub, sid, undefined]);
      assert.deepEqual(payload.events, { 'http://schemas.openid.net/event/backchannel-logout': {} });
      assert.ok(payload.jti && protectedHeader.alg === 'RS256');
    };
    const isOver = async (tokens) => {
      await assert.rejects(oidc.refreshTokenGrant(config, tokens.refresh_token), { error: 'invalid_grant' });
      await assert.rejects(oidc.fetchUserInfo(config, tokens.access_token, tokens.claims().sub));
      count.denied += 2;
      assert.equal((await oidc.tokenIntrospection(config, tokens.access_token)).active, false);
    };

    const browser = new Browser();
    let tokens = await signIn(config, browser, 'ann');
    const old = tokens.id_token;
    const leave = (hint, more = {}) => oidc.buildEndSessionUrl(config, { post_logout_redirect_uri: BYE, state: 'a b', ...(hint ? { id_token_hint: hint } : {}), ...more }).href;
    const gone = await browser.follow(leave(tokens.id_token));
    assert.equal(gone.url, `${BYE}?state=a+b`, gone.reply.body);
    await isOver(tokens);
    await isTold(tokens);

    // Without the hint of this very login the person is asked, whoever sent them here.
    tokens = await signIn(config, browser, 'ann');
    for (const hint of [undefined, old]) {
      const asked = await browser.follow(leave(hint));
      assert.ok(asked.reply.status === 200 && asked.reply.body.includes('Sign out?'), asked.url);
      assert.match(asked.reply.headers['content-security-policy'], /form-action 'self' https:\/\/git\.elsewhere\.test;/);
      assert.equal((await browser.post(asked.url, { ticket: 'x' })).status, 200, 'asked again');
    }
    await oidc.fetchUserInfo(config, tokens.access_token, tokens.claims().sub);
    const asked = await browser.follow(leave());
    const ticket = asked.reply.body.match(/name="ticket" value="([^"]+)"/)[1];
    const done = await browser.post(asked.url, { ticket });
    assert.deepEqual([done.status, done.headers.location], [303, `${BYE}?state=a+b`]);
    await isOver(tokens);
    await isTold(tokens);

    // By a form of another site, with a hint.
    tokens = await signIn(config, browser, 'ann');
    const posted = await browser.post(`${issuerOf('git')}/end_session`, { id_token_hint: tokens.id_token, post_logout_redirect_uri: BYE }, { crossSite: true });
    assert.equal(posted.status, 303);
    assert.equal((await browser.follow(`${issuerOf('git')}/end_session`, posted)).url, BYE);
    await isOver(tokens);
    await isTold(tokens);

    // By an administrator.
    tokens = await signIn(config, browser, 'ann');
    execFileSync(options.admin[0], [...options.admin.slice(1), 'session', 'revoke', '--user', 'ann@example.com']);
    await isOver(tokens);
    await isTold(tokens);
    assert.deepEqual(told, []);

    for (const wrong of [
      { post_logout_redirect_uri: 'https://evil.test/bye' },
      { post_logout_redirect_uri: `${BYE}/` },
      { post_logout_redirect_uri: BYE.toUpperCase() },
      { id_token_hint: 'nonsense' },
      { id_token_hint: `${old.slice(0, -8)}AAAAAAAA` },
      { id_token_hint: tokens.access_token },
      { client_id: 'spa' },
    ]) {
      const reply = await browser.request(`${issuerOf('git')}/end_session?${form({ post_logout_redirect_uri: BYE, ...wrong })}`);
      assert.deepEqual([reply.status, reply.headers.location], [400, undefined], JSON.stringify(wrong));
      count.denied++;
    }
    const foreign = await browser.request(`${issuerOf('keys')}/end_session?${form({ id_token_hint: old })}`);
    assert.equal(foreign.status, 400);
    count.denied++;
    server.close();
  },
};

scenarios.hostile = (await import('./saas-hostile.mjs')).hostile({
  options, count, here, issuerOf, CB, SPA, BYE, JWT_BEARER, form, send, pause, Browser, discover, signIn, secret, verifier, challengeOf, privateKey,
});

try {
  await scenarios[options.scenario]();
  console.log(JSON.stringify(count));
} catch (error) {
  console.log(error);
  process.exitCode = 1;
}
process.exit();
