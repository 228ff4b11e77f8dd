// A real OpenID provider (npm `oidc-provider`) behind a proxy that can be told to cheat.
//
//   node idp.mjs '{"port": …, "internal": …, "cert": …, "key": …, "issuer": …, "redirect_uris": […], "client_id": …,
//                  "client_secret": …, "accounts": {"ann": {claims}}, "claims_in": "userinfo" | "id_token"}'
//
// The proxy terminates TLS on `port` and passes everything on to the provider on `internal`. `POST /_tamper` with a
// mode from `tampers` below makes it alter what passes; `GET /_seen` counts the requests it saw by path.
import https from 'node:https';
import http from 'node:http';
import { readFileSync } from 'node:fs';
import Provider from 'oidc-provider';
import * as jose from 'jose';

const options = JSON.parse(process.argv[2]);
const { privateKey, publicKey } = await jose.generateKeyPair('RS256', { extractable: true });
const key = { ...(await jose.exportJWK(privateKey)), kid: 'first', alg: 'RS256', use: 'sig' };
const stranger = await jose.generateKeyPair('RS256', { extractable: true });
const strangerKey = { ...(await jose.exportJWK(stranger.publicKey)), kid: 'second', alg: 'RS256', use: 'sig' };

const provider = new Provider(options.issuer, {
  clients: [{
    client_id: options.client_id,
    client_secret: options.client_secret,
    redirect_uris: options.redirect_uris,
    response_types: ['code'],
    grant_types: ['authorization_code'],
  }],
  jwks: { keys: [key] },
  cookies: { keys: ['only for tests'] },
  pkce: { required: () => true },
  scopes: ['openid', 'email', 'profile', 'groups'],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'], groups: ['groups'] },
  conformIdTokenClaims: options.claims_in !== 'id_token',
  findAccount: (_, id) => options.accounts[id] && {
    accountId: id,
    claims: async () => ({ sub: id, ...options.accounts[id] }),
  },
  // Nobody is asked for consent.
  loadExistingGrant: async (ctx) => {
    const known = ctx.oidc.session.grantIdFor(ctx.oidc.client.clientId);
    if (known) return ctx.oidc.provider.Grant.find(known);
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope('openid email profile groups');
    await grant.save();
    return grant;
  },
});
provider.proxy = true;
provider.on('server_error', (_, error) => console.error(error));
const inner = provider.listen(options.internal, '127.0.0.1');

// Signs the claims of an ID token again, changed.
async function resigned(token, change, header = {}, by = privateKey, known = {}) {
  const claims = jose.decodeJwt(token);
  change(claims);
  const text = new TextEncoder().encode(JSON.stringify(claims));
  return new jose.CompactSign(text).setProtectedHeader({ alg: 'RS256', kid: 'first', ...header }).sign(by, { crit: known });
}

const idToken = (change) => async (tokens) => ({ ...tokens, id_token: await change(tokens.id_token) });
const claims = (change) => idToken((token) => resigned(token, change));
const now = () => Math.floor(Date.now() / 1000);
const bytes = (text) => new TextEncoder().encode(text);
const hmac = (secret) => (token) =>
  new jose.CompactSign(bytes(JSON.stringify(jose.decodeJwt(token)))).setProtectedHeader({ alg: 'HS256' }).sign(secret);

// What each mode does to: `token` (the token response), `userinfo`, `callback` (the redirect back), `jwks`, `discovery`,
// `ask` (the authorization request), `reply` (the raw answer of the token endpoint).
const tampers = {
  none: {},
  resign: { token: claims(() => {}) },
  nonce: { token: claims((c) => { c.nonce = 'another'; }) },
  no_nonce: { token: claims((c) => { delete c.nonce; }) },
  issuer: { token: claims((c) => { c.iss = 'https://evil.test'; }) },
  audience: { token: claims((c) => { c.aud = 'another'; }) },
  two_audiences: { token: claims((c) => { c.aud = [c.aud, 'another']; }) },
  authorized_party: { token: claims((c) => { c.azp = 'another'; }) },
  expired: { token: claims((c) => { c.exp = now() - 120; }) },
  exp_text: { token: claims((c) => { c.exp = String(c.exp); }) },
  future: { token: claims((c) => { c.iat = now() + 600; }) },
  access_token_hash: { token: claims((c) => { c.at_hash = 'AAAAAAAAAAAAAAAAAAAAAA'; }) },
  no_subject: { token: claims((c) => { delete c.sub; }) },
  critical: { token: idToken((t) => resigned(t, () => {}, { crit: ['rule'], rule: 1 }, privateKey, { rule: true })) },
  signature: { token: idToken((t) => t.slice(0, -8) + (t.at(-8) === 'A' ? 'B' : 'A') + t.slice(-7)) },
  unsigned: { token: idToken((t) => jose.base64url.encode('{"alg":"none"}') + '.' + t.split('.')[1] + '.') },
  hmac_secret: { token: idToken(hmac(bytes(options.client_secret))) },
  hmac_public: { token: idToken(async (t) => hmac(bytes(await jose.exportSPKI(publicKey)))(t)) },
  unknown_key: { token: idToken((t) => resigned(t, () => {}, { kid: 'second' }, stranger.privateKey)) },
  own_key: { token: idToken((t) => resigned(t, () => {}, { jwk: strangerKey, kid: undefined }, stranger.privateKey)) },
  same_kid: { token: idToken((t) => resigned(t, () => {}, { kid: 'first' }, stranger.privateKey)) },
  rotated: {
    jwks: (set) => ({ keys: [...set.keys, strangerKey] }),
    token: idToken((t) => resigned(t, () => {}, { kid: 'second' }, stranger.privateKey)),
  },
  // Every answer of the token endpoint after the first is the first again, whatever code it is asked for.
  replay: { replays: true },
  no_id_token: { token: async ({ id_token: _, ...rest }) => rest },
  verified_text: { token: claims((c) => { c.email_verified = 'true'; }), userinfo: (c) => ({ ...c, email_verified: 'true' }) },
  verified_false: { token: claims((c) => { c.email_verified = false; }), userinfo: (c) => ({ ...c, email_verified: false }) },
  verified_number: { token: claims((c) => { c.email_verified = 1; }), userinfo: (c) => ({ ...c, email_verified: 1 }) },
  verified_absent: {
    token: claims((c) => { delete c.email_verified; }),
    userinfo: ({ email_verified: _, ...rest }) => rest,
  },
  userinfo_subject: { userinfo: (c) => ({ ...c, sub: 'eve' }) },
  userinfo_list: { userinfo: (c) => [c] },
  callback_issuer: { callback: (url) => url.searchParams.set('iss', 'https://evil.test') },
  callback_no_issuer: { callback: (url) => url.searchParams.delete('iss') },
  // As providers are that know nothing of RFC 9207.
  no_issuer: {
    discovery: ({ authorization_response_iss_parameter_supported: _, ...rest }) => rest,
    callback: (url) => url.searchParams.delete('iss'),
  },
  // Whoever is logged in is not asked again, whatever the node wants.
  sticky: { ask: (url) => ['prompt', 'max_age'].forEach((name) => url.searchParams.delete(name)) },
  sticky_and_old: {
    ask: (url) => ['prompt', 'max_age'].forEach((name) => url.searchParams.delete(name)),
    token: claims((c) => { c.auth_time = now() - 3600; }),
  },
  callback_state: { callback: (url) => url.searchParams.set('state', url.searchParams.get('state').slice(0, -4) + 'AAAA') },
  callback_no_state: { callback: (url) => url.searchParams.delete('state') },
  callback_two_codes: { callback: (url) => url.searchParams.append('code', 'another') },
  callback_error: { callback: (url) => { url.searchParams.delete('code'); url.searchParams.set('error', 'access_denied'); } },
  header_injection: { token: async (tokens) => ({ ...tokens, access_token: 'a\r\nX-Evil: 1' }), resign: true },
  garbage: { reply: (response) => { response.writeHead(200, { 'content-type': 'application/json' }); response.end('{"a":'); } },
  huge: { reply: (response) => { response.writeHead(200, { 'content-type': 'application/json' }); response.end('{"a":"' + 'x'.repeat(4 << 20) + '"}'); } },
  endless: {
    reply: (response) => {
      response.writeHead(200, { 'content-type': 'application/json' });
      const timer = setInterval(() => response.write(' '), 100);
      response.on('close', () => clearInterval(timer));
    },
  },
  redirect: { reply: (response) => { response.writeHead(302, { location: `${options.issuer}/elsewhere` }); response.end(); } },
  error: { reply: (response) => { response.writeHead(500); response.end('secret diagnostics'); } },
  hang_up: { reply: (response) => response.socket.destroy() },
};

let mode = tampers.none;
let first;
let seen = {};

function body(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part)).on('end', () => resolve(Buffer.concat(parts))).on('error', reject);
  });
}

function pass(request, sent) {
  return new Promise((resolve, reject) => {
    const headers = { ...request.headers, 'x-forwarded-proto': 'https', 'x-forwarded-host': request.headers.host };
    http.request({ port: options.internal, host: '127.0.0.1', method: request.method, path: request.url, headers }, resolve)
      .on('error', reject).end(sent);
  });
}

async function answer(request, response) {
  const path = new URL(request.url, options.issuer).pathname;
  const sent = await body(request);
  if (path === '/_tamper') {
    mode = tampers[sent.toString()];
    response.writeHead(mode ? 204 : 400).end();
    mode ??= tampers.none;
    return;
  }
  if (path === '/_seen') {
    response.end(JSON.stringify(seen));
    return;
  }
  seen[path] = (seen[path] ?? 0) + 1;
  if (path === '/token' && mode.reply) {
    mode.reply(response);
    return;
  }
  if (path === '/token' && mode.replays && first) {
    response.writeHead(200, { 'content-type': 'application/json' }).end(first);
    return;
  }
  if (path === '/auth' && mode.ask) {
    const url = new URL(request.url, options.issuer);
    mode.ask(url);
    request.url = `${url.pathname}${url.search}`;
  }
  const reply = await pass(request, sent);
  let content = await body(reply);
  const headers = { ...reply.headers };
  const change = {
    '/token': mode.token,
    '/me': mode.userinfo,
    '/jwks': mode.jwks,
    '/.well-known/openid-configuration': mode.discovery,
  }[path];
  if (change && reply.statusCode === 200) {
    content = Buffer.from(JSON.stringify(await change(JSON.parse(content))));
    headers['content-length'] = content.length;
    delete headers['transfer-encoding'];
  }
  if (path === '/token' && mode.replays) first = content;
  if (mode.callback && options.redirect_uris.some((uri) => headers.location?.startsWith(uri))) {
    const url = new URL(headers.location);
    mode.callback(url);
    headers.location = url.href;
  }
  response.writeHead(reply.statusCode, headers);
  response.end(content);
}

https.createServer({ cert: readFileSync(options.cert), key: readFileSync(options.key) }, (request, response) => {
  answer(request, response).catch((error) => {
    console.error(error);
    response.destroy();
  });
}).listen(options.port, '127.0.0.1', () => inner.listening ? console.log('ready') : inner.on('listening', () => console.log('ready')));
