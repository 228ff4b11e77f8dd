// Requests to the node's OpenID provider that no honest application makes, one table a place. What each must get is beside it.
import assert from 'node:assert/strict';
import * as jose from 'jose';
import * as oidc from 'openid-client';

export const hostile = (lab) => async () => {
  const { options, count, here, issuerOf, CB, SPA, JWT_BEARER, form, send, pause, Browser, discover, signIn, secret, verifier, challengeOf, privateKey } = lab;
  const git = await discover('git', oidc.ClientSecretPost(secret()));
  const ann = new Browser();
  const honest = await signIn(git, ann, 'ann');
  let cases = 0;
  // The log writes what a stranger causes one by one up to 50 a second.
  const next = () => (cases++, pause(30));

  // Authorization requests. `page`: the node's own page and no redirect. A word: that error at the verified address.
  const code_challenge = await challengeOf(verifier());
  const good = { client_id: 'git', redirect_uri: CB, response_type: 'code', scope: 'openid', state: 's', code_challenge, code_challenge_method: 'S256' };
  const authorization = (id, fields) => `${issuerOf(id)}/authorization?${typeof fields === 'string' ? fields : form(fields)}`;
  const without = (name) => Object.fromEntries(Object.entries(good).filter(([key]) => key !== name));
  const requests = [
    [`${CB}/`, 'x', `${CB}/../cb`, `${CB}?`, `${CB}?x=1`, `${CB}#x`, CB.replace('https', 'HTTPS'), CB.replace('git', 'GIT'), `${CB.slice(0, -2)}CB`,
      'https://u@git.elsewhere.test/cb', 'https://git.elsewhere.test:443/cb', 'https://git.elsewhere.test./cb', 'http://git.elsewhere.test/cb',
      'https://git.elsewhere.test/%63b', 'https://git.elsewhere.test.evil.test/cb', 'https://evil.test/cb', 'https://git.elsewhere.test@evil.test/cb',
      '//git.elsewhere.test/cb', 'https:\\\\git.elsewhere.test\\cb', `${CB} `, ` ${CB}`, `${CB}\0`, 'javascript:alert(1)', '', SPA,
      'https://git.elsewhere.test/c', `https://git.elsewhere.test/${'b'.repeat(9000)}`,
    ].map((redirect_uri) => [`redirect ${redirect_uri.slice(0, 60)}`, { ...good, redirect_uri }, 'page']),
    [
      ['no redirect', without('redirect_uri'), 'page'],
      ['two redirects', `${form(good)}&redirect_uri=${encodeURIComponent('https://evil.test/')}`, 'page'],
      ['the same redirect twice', `${form(good)}&redirect_uri=${encodeURIComponent(CB)}`, 'page'],
      ['no client', without('client_id'), 'page'],
      ['another client', { ...good, client_id: 'spa' }, 'page'],
      ['two clients', `${form(good)}&client_id=git`, 'page'],
      ['response_type token', { ...good, response_type: 'token' }, 'unsupported_response_type'],
      ['response_type hybrid', { ...good, response_type: 'code id_token' }, 'unsupported_response_type'],
      ['no response_type', without('response_type'), 'invalid_request'],
      ['response_mode fragment', { ...good, response_mode: 'fragment' }, 'invalid_request'],
      ['response_mode web_message', { ...good, response_mode: 'web_message' }, 'invalid_request'],
      ['no openid', { ...good, scope: 'email' }, 'invalid_scope'],
      ['no scope', without('scope'), 'invalid_scope'],
      ['scope in capitals', { ...good, scope: 'OPENID' }, 'invalid_scope'],
      ['plain challenge', { ...good, code_challenge_method: 'plain' }, 'invalid_request'],
      ['challenge without method', without('code_challenge_method'), 'invalid_request'],
      ['method without challenge', without('code_challenge'), 'invalid_request'],
      ['short challenge', { ...good, code_challenge: 'abc' }, 'invalid_request'],
      ['prompt none and login', { ...good, prompt: 'none login' }, 'invalid_request'],
      ['max_age negative', { ...good, max_age: '-1' }, 'invalid_request'],
      ['max_age huge', { ...good, max_age: '99999999999999999999' }, 'invalid_request'],
      ['max_age word', { ...good, max_age: '1e3' }, 'invalid_request'],
      ['request object', { ...good, request: 'eyJhbGciOiJub25lIn0.e30.' }, 'request_not_supported'],
      ['request address', { ...good, request_uri: 'http://169.254.169.254/' }, 'request_uri_not_supported'],
      ['registration', { ...good, registration: '{}' }, 'registration_not_supported'],
      ['long nonce', { ...good, nonce: 'n'.repeat(300) }, 'invalid_request'],
      ['two scopes', `${form(good)}&scope=openid`, 'invalid_request'],
      ['two prompts', `${form(good)}&prompt=none&prompt=login`, 'invalid_request'],
      ['long state', { ...good, state: 's'.repeat(2000) }, 'invalid_request', null],
      ['state with a line', { ...good, state: 'a\r\nSet-Cookie: x=1' }, 'invalid_request', null],
      ['two states', `${form(good)}&state=t`, 'invalid_request', null],
    ],
  ].flat();
  for (const [what, fields, expected, state = 's'] of requests) {
    const reply = await ann.request(authorization('git', fields));
    count.denied++;
    if (expected === 'page') {
      assert.deepEqual([reply.status, reply.headers.location], [400, undefined], what);
      assert.match(reply.body, /Ray ID/, what);
    } else {
      assert.equal(reply.status, 302, `${what}: ${reply.body}`);
      const to = new URL(reply.headers.location);
      assert.equal(`${to.origin}${to.pathname}`, CB, what);
      const { error, iss, state: back = null, code } = Object.fromEntries(to.searchParams);
      assert.deepEqual([error, iss, back, code], [expected, issuerOf('git'), state, undefined], what);
    }
    await next();
  }
  const open = { ...good, client_id: 'spa', redirect_uri: SPA };
  delete open.code_challenge;
  delete open.code_challenge_method;
  const bare = await ann.request(authorization('spa', open));
  assert.match(bare.headers.location, /error=invalid_request/, 'a public client without PKCE');
  count.denied++;
  const silent = await new Browser().request(authorization('git', { ...good, prompt: 'none' }));
  assert.match(silent.headers.location, /^https:\/\/git\.elsewhere\.test\/cb\?error=login_required&/);
  count.denied++;
  const unreadable = await ann.request(`${issuerOf('git')}/authorization`, { method: 'POST', body: form(good), headers: { 'content-type': 'text/plain' } });
  assert.deepEqual([unreadable.status, unreadable.headers.location], [400, undefined]);
  count.denied++;
  for (const [method, endpoint, status] of [['PUT', 'authorization', 405], ['GET', 'token', 405], ['POST', 'resume', 405], ['GET', 'nothing', 404], ['HEAD', 'authorization', 405]]) {
    assert.equal((await ann.request(`${issuerOf('git')}/${endpoint}?${form(good)}`, { method })).status, status, `${method} ${endpoint}`);
  }
  for (const path of ['sso/oidc/nobody/authorization', 'sso/saml/git/authorization', 'sso/oidc', 'sso/oidc/git', 'sso/oidc/GIT/jwks']) {
    assert.equal((await ann.request(`${here}/cdn-cgi/access/${path}`)).status, 404, path);
  }

  // A token without the cookie that binds it, and the cookies of another browser's other half, are nobody's.
  const half = new Browser(ann);
  half.cookies.delete('__Host-CF_Binding');
  const bob = new Browser();
  const config = await discover('git', oidc.ClientSecretPost(secret()));
  await signIn(config, bob, 'bob');
  const mixed = new Browser(ann);
  mixed.cookies.set('__Host-CF_Binding', bob.cookies.get('__Host-CF_Binding'));
  for (const [what, browser] of [['unbound', half], ['mixed', mixed]]) {
    const reply = await browser.request(authorization('git', good));
    assert.match(reply.headers.location, /^https:\/\/access\.example\.com:\d+\/cdn-cgi\/access\/login\//, what);
  }

  // Whom policy denies: the node's own page, nothing sent.
  const denied = await bob.request(authorization('ops', { ...good, client_id: 'ops' }));
  assert.deepEqual([denied.status, denied.headers.location], [403, undefined]);
  assert.match(denied.body, /You do not have access/);
  assert.match(denied.body, /Ray ID/);
  count.denied++;
  const quiet = await bob.request(authorization('ops', { ...good, client_id: 'ops', prompt: 'none' }));
  assert.deepEqual([quiet.status, quiet.headers.location], [403, undefined]);
  count.denied++;

  // The token endpoint. Each gets a code of its own.
  const fresh = async (id = 'git', redirect_uri = CB, more = {}, browser = ann) => {
    const code_verifier = verifier();
    const fields = { ...good, client_id: id, redirect_uri, scope: 'openid offline_access', code_challenge: await challengeOf(code_verifier), ...more };
    const reply = await browser.request(authorization(id, fields));
    count.allowed++;
    const code = new URL(reply.headers.location).searchParams.get('code');
    return { grant_type: 'authorization_code', code, redirect_uri, code_verifier, client_id: id, client_secret: secret() };
  };
  const post = (id, endpoint, fields, headers = {}) => send(`${issuerOf(id)}/${endpoint}`, {
    method: 'POST', body: typeof fields === 'string' ? fields : form(fields),
    headers: { 'content-type': 'application/x-www-form-urlencoded', ...headers },
  });
  const drop = (fields, ...names) => Object.fromEntries(Object.entries(fields).filter(([key]) => !names.includes(key)));
  const basic = (user, password) => ({ authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}` });
  // Change, error, and whether the attempt must have spoilt the code.
  const attempts = [
    ['wrong address', (f) => [{ ...f, redirect_uri: `${CB}/` }], 'invalid_grant', true],
    ['no address', (f) => [drop(f, 'redirect_uri')], 'invalid_grant', true],
    ['no verifier', (f) => [drop(f, 'code_verifier')], 'invalid_grant', true],
    ['wrong verifier', (f) => [{ ...f, code_verifier: verifier() }], 'invalid_grant', true],
    ['empty verifier', (f) => [{ ...f, code_verifier: '' }], 'invalid_grant', true],
    ['two verifiers', (f) => [`${form(f)}&code_verifier=${f.code_verifier}`], 'invalid_grant', true],
    ['two codes', (f) => [`${form(f)}&code=${f.code}`], 'invalid_grant', false],
    ['no code', (f) => [drop(f, 'code')], 'invalid_grant', false],
    ['a changed code', (f) => [{ ...f, code: f.code.slice(0, -2) + (f.code.endsWith('AA') ? 'BB' : 'AA') }], 'invalid_grant', false],
    ['an access token for a code', (f) => [{ ...f, code: honest.access_token }], 'invalid_grant', false],
    ['a code for a refresh token', (f) => [{ ...f, grant_type: 'refresh_token', refresh_token: f.code }], 'invalid_grant', false],
    ['a huge code', (f) => [{ ...f, code: 'A'.repeat(12000) }], 'invalid_grant', false],
    ['wrong secret', (f) => [{ ...f, client_secret: `${secret()}x` }], 'invalid_client', false],
    ['empty secret', (f) => [{ ...f, client_secret: '' }], 'invalid_client', false],
    ['no secret', (f) => [drop(f, 'client_secret')], 'invalid_client', false],
    ['no client', (f) => [drop(f, 'client_secret', 'client_id')], 'invalid_client', false],
    ['secret without client', (f) => [drop(f, 'client_id')], 'invalid_client', false],
    ['another name', (f) => [{ ...f, client_id: 'spa' }], 'invalid_client', false],
    ['another name in the header', (f) => [drop(f, 'client_secret', 'client_id'), basic('spa', secret())], 'invalid_client', false],
    ['wrong secret in the header', (f) => [drop(f, 'client_secret'), basic('git', 'x')], 'invalid_client', false],
    ['no base64 in the header', (f) => [drop(f, 'client_secret'), { authorization: 'Basic !!!' }], 'invalid_client', false],
    ['another scheme', (f) => [drop(f, 'client_secret'), { authorization: `Bearer ${secret()}` }], 'invalid_client', false],
  ];
  for (const [what, change, error, spoilt] of attempts) {
    const fields = await fresh();
    const [changed, headers] = change(fields);
    const reply = await post('git', 'token', changed, headers);
    assert.deepEqual([reply.status, JSON.parse(reply.body).error], [error === 'invalid_client' ? 401 : 400, error], `${what}: ${reply.body}`);
    count.denied++;
    const after = await post('git', 'token', fields);
    assert.equal(after.status, spoilt ? 400 : 200, `${what}, then honestly: ${after.body}`);
    if (spoilt) count.denied++;
    await next();
  }
  // Refused before anything is decided: no sign-in to write about.
  for (const [what, change, status, error] of [
    ['secret twice over', (f) => [f, basic('git', secret())], 400, 'invalid_request'],
    ['secret and assertion', (f) => [{ ...f, client_assertion: 'x', client_assertion_type: JWT_BEARER }], 400, 'invalid_request'],
    ['two secrets', (f) => [`${form(f)}&client_secret=x`], 400, 'invalid_request'],
    ['password grant', (f) => [{ ...f, grant_type: 'password', username: 'ann', password: options.password }], 400, 'unsupported_grant_type'],
    ['client credentials', (f) => [{ ...f, grant_type: 'client_credentials' }], 400, 'unsupported_grant_type'],
    ['no grant type', (f) => [drop(f, 'grant_type')], 400, 'invalid_request'],
    ['two grant types', (f) => [`${form(f)}&grant_type=refresh_token`], 400, 'invalid_request'],
    ['JSON', (f) => [JSON.stringify(f), { 'content-type': 'application/json' }], 400, 'invalid_request'],
    ['100 KB', (f) => [{ ...f, padding: 'x'.repeat(100_000) }], 413],
  ]) {
    const fields = await fresh();
    const reply = await post('git', 'token', ...change(fields));
    assert.equal(reply.status, status, `${what}: ${reply.body}`);
    if (error) assert.equal(JSON.parse(reply.body).error, error, what);
    assert.equal((await post('git', 'token', fields)).status, 200, what);
    await next();
  }

  // A code that comes again ends what was granted with it.
  const replayed = await fresh();
  const tokens = JSON.parse((await post('git', 'token', replayed)).body);
  const about = (token) => send(`${issuerOf('git')}/userinfo`, { headers: { authorization: `Bearer ${token}` } });
  assert.equal((await about(tokens.access_token)).status, 200);
  assert.equal((await post('git', 'token', replayed)).status, 400);
  assert.equal((await about(tokens.access_token)).status, 401);
  const late = await post('git', 'token', { ...drop(replayed, 'code'), grant_type: 'refresh_token', refresh_token: tokens.refresh_token });
  assert.equal(late.status, 400);
  count.denied += 3;
  await next();

  // A code without a challenge takes no verifier (RFC 9700 §4.8.2).
  const stripped = await ann.request(authorization('git', drop(good, 'code_challenge', 'code_challenge_method')));
  count.allowed++;
  const code = new URL(stripped.headers.location).searchParams.get('code');
  const downgraded = await post('git', 'token', { grant_type: 'authorization_code', code, redirect_uri: CB, client_id: 'git', client_secret: secret(), code_verifier: verifier() });
  assert.equal(downgraded.status, 400);
  count.denied++;

  // What belongs to one client is worth nothing to another, and the attempt harms nobody.
  const own = JSON.parse((await post('git', 'token', await fresh())).body);
  const theirs = await fresh();
  const stolen = [
    ['code', 'token', { ...drop(theirs, 'client_secret'), client_id: 'spa' }, 400],
    ['refresh token', 'token', { grant_type: 'refresh_token', refresh_token: own.refresh_token, client_id: 'spa' }, 400],
  ];
  for (const [what, endpoint, fields, status] of stolen) {
    assert.equal((await post('spa', endpoint, fields)).status, status, what);
    count.denied++;
  }
  assert.equal((await post('spa', 'revoke', { token: own.refresh_token, client_id: 'spa' })).status, 200);
  assert.equal((await send(`${issuerOf('spa')}/userinfo`, { headers: { authorization: `Bearer ${own.access_token}` } })).status, 401);
  count.denied++;
  assert.equal((await post('spa', 'introspect', { token: own.access_token, client_id: 'spa' })).status, 401, 'a public client');
  const ops = await post('ops', 'introspect', { token: own.access_token, client_id: 'ops', client_secret: secret() });
  assert.deepEqual(JSON.parse(ops.body), { active: false });
  assert.equal((await post('git', 'introspect', { token: own.access_token, client_id: 'git', client_secret: 'x' })).status, 401);
  count.denied++;
  assert.equal((await about(own.access_token)).status, 200, 'still good');
  assert.equal((await post('git', 'token', theirs)).status, 200, 'still good');
  const wider = await post('git', 'token', { grant_type: 'refresh_token', refresh_token: own.refresh_token, scope: 'openid groups', client_id: 'git', client_secret: secret() });
  assert.equal(JSON.parse(wider.body).error, 'invalid_scope');

  // Tokens of another kind.
  for (const [what, token] of [['nothing', undefined], ['noise', 'x'], ['an ID token', own.id_token], ['a refresh token', own.refresh_token], ['a code', theirs.code], ['dots', '.'.repeat(10000)]]) {
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const reply = await send(`${issuerOf('git')}/userinfo`, { headers });
    assert.equal(reply.status, 401, what);
    assert.match(reply.headers['www-authenticate'], /^Bearer/, what);
    count.denied++;
    await next();
  }

  // Assertions of a client that proves itself by its key.
  const now = () => Math.floor(Date.now() / 1000);
  const [key, other] = [await privateKey(options.key), await privateKey(options.other)];
  const keyText = new TextEncoder().encode(JSON.stringify(options.key.x));
  const base = () => ({ iss: 'keys', sub: 'keys', aud: issuerOf('keys'), exp: now() + 60, iat: now(), jti: verifier() });
  const sign = (claims, by = key, header = {}) => new jose.SignJWT(claims).setProtectedHeader({ alg: 'ES256', kid: 'one', ...header }).sign(by);
  const unsigned = (header, claims) => `${jose.base64url.encode(JSON.stringify(header))}.${jose.base64url.encode(JSON.stringify(claims))}.`;
  const bearer = (client_assertion) => ({ client_assertion, client_assertion_type: JWT_BEARER });
  const once = await sign(base());
  const assertions = [
    ['alg none', unsigned({ alg: 'none' }, base())],
    ['alg None', unsigned({ alg: 'None', kid: 'one' }, base())],
    ['no signature', unsigned({ alg: 'ES256', kid: 'one' }, base())],
    ['HS256 with the public key', await sign(base(), keyText, { alg: 'HS256' })],
    ['the key of somebody else', await sign(base(), other)],
    ['its own key in the header', await sign(base(), other, { jwk: { kty: 'EC', crv: 'P-256', x: options.other.x, y: options.other.y } })],
    ['a key by address', await sign(base(), other, { jku: 'http://169.254.169.254/' })],
    ['a key of another name', await sign(base(), key, { kid: '../../one' })],
    ['a critical extension', await new jose.SignJWT(base()).setProtectedHeader({ alg: 'ES256', kid: 'one', crit: ['b64'], b64: true }).sign(key)],
    ['expired', await sign({ ...base(), exp: now() - 1 })],
    ['no expiry', await sign({ ...base(), exp: undefined })],
    ['expiry as text', await sign({ ...base(), exp: String(now() + 60) })],
    ['good for a day', await sign({ ...base(), exp: now() + 86400 })],
    ['not yet', await sign({ ...base(), nbf: now() + 600 })],
    ['from the future', await sign({ ...base(), iat: now() + 600 })],
    ['for another server', await sign({ ...base(), aud: 'https://evil.test' })],
    ['for another client of this node', await sign({ ...base(), aud: issuerOf('git') })],
    ['for nobody', await sign({ ...base(), aud: [] })],
    ['by another client', await sign({ ...base(), iss: 'git' })],
    ['about another client', await sign({ ...base(), sub: 'git' })],
    ['no identifier', await sign({ ...base(), jti: undefined })],
    ['empty identifier', await sign({ ...base(), jti: '' })],
    ['long identifier', await sign({ ...base(), jti: 'j'.repeat(300) })],
    ['too long', `${once}${'A'.repeat(9000)}`],
    ['dots', '.'.repeat(9000)],
    ['empty', ''],
    ['used before', once],
  ];
  const asked = await fresh('keys');
  const fields = drop(asked, 'client_secret');
  const unknown = await post('keys', 'introspect', { token: 'x', ...bearer(once) });
  assert.deepEqual([unknown.status, unknown.body], [200, '{"active":false}'], 'good once');
  for (const [what, assertion] of assertions) {
    const reply = await post('keys', 'token', { ...fields, ...bearer(assertion) });
    assert.deepEqual([reply.status, JSON.parse(reply.body).error], [401, 'invalid_client'], `${what}: ${reply.body}`);
    count.denied++;
    await next();
  }
  for (const [what, more] of [
    ['a secret instead', { client_secret: secret() }],
    ['nothing', {}],
    ['another kind of assertion', { client_assertion: await sign(base()), client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:saml2-bearer' }],
  ]) {
    assert.equal((await post('keys', 'token', { ...fields, ...more })).status, 401, what);
    count.denied++;
    await next();
  }
  const right = await post('keys', 'token', { ...fields, ...bearer(await sign({ ...base(), aud: [`${issuerOf('keys')}/token`] })) });
  assert.equal(right.status, 200, right.body);
  const spa = await fresh('spa', SPA);
  assert.equal((await post('spa', 'token', spa)).status, 401, 'a public client with a secret');
  count.denied++;
  assert.equal((await post('spa', 'token', drop(spa, 'client_secret'))).status, 200);
  assert.ok(cases > 90, `${cases} cases`);
};
