// Headless Chromium through the login. Standard input: {"scenario", "port", "password", "pictures", "idp"?, "device"?}.
// Prints `ok` and what it saw, or fails with what it expected. Names lead to loopback by resolver rules, so the sites
// are as different to the browser as they will be in the world.
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const options = JSON.parse(readFileSync(0, 'utf8'));
const require = createRequire(import.meta.url);
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const at = (host, path = '/') => `https://${host}:${options.port}${path}`;
const AUTH = 'access.example.com', WIKI = 'wiki.example.com', SHOP = 'shop.elsewhere.test', BRIEF = 'brief.example.com';

const executablePath = process.env.PATH.split(':').map((dir) => `${dir}/chromium`).find(existsSync);
assert.ok(executablePath, 'chromium is not installed: run `cargo xtask setup`');
const browser = await chromium.launch({
  executablePath,
  args: [
    '--no-sandbox',
    '--host-resolver-rules=MAP *.example.com 127.0.0.1, MAP *.test 127.0.0.1, MAP localhost 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
  ],
});

// A fresh browser. What it logs as an error fails the scenario, unless it is the status of a page.
const complaints = [];
async function open(settings = {}) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, ...settings });
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  page.on('console', (message) => {
    const text = message.text();
    if (message.type() === 'error' && !text.startsWith('Failed to load resource')) complaints.push(text);
  });
  page.on('requestfailed', (request) => {
    const why = request.failure()?.errorText;
    const ours = /\.(example\.com|test)$/.test(new URL(request.url()).hostname);
    if (ours && why !== 'net::ERR_ABORTED') complaints.push(`${request.url()}: ${why}`);
  });
  return page;
}

// A picture of a page as it is on a phone and on a desktop, light and dark.
const screens = { phone: { width: 360, height: 740 }, desktop: { width: 1280, height: 800 } };
async function inEveryDress(page, name) {
  mkdirSync(options.pictures, { recursive: true });
  for (const [size, viewport] of Object.entries(screens)) {
    await page.setViewportSize(viewport);
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: `${options.pictures}/${name}-${size}-${colorScheme}.png` });
    }
  }
}

async function fillIn(page, user, password = options.password) {
  await page.getByLabel('User name').fill(user);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
}

const arrives = (page, url) => page.waitForURL(url, { waitUntil: 'load' });
// A click does not wait for the page it leads to: what is expected is waited for.
const heading = (page, text) => page.getByRole('heading', { level: 1, name: text, exact: true }).waitFor();
const seen = async (page) => JSON.parse(await page.locator('body').textContent());
const header = (request, name) => request.headers.find(([found]) => found === name)?.[1];

async function signIn(page, url, user = 'ann') {
  await page.goto(url);
  await heading(page, 'Sign in');
  await fillIn(page, user);
  await arrives(page, url);
}

const scenarios = {
  // Everything a person does, with scripts switched off: nothing of ours needs them.
  async login() {
    const page = await open({ javaScriptEnabled: false });
    const cookies = (url) => page.context().cookies(url);
    await page.goto(at(WIKI, '/deep?x=1'));
    assert.equal(new URL(page.url()).host, `${AUTH}:${options.port}`);
    await fillIn(page, 'ann', 'wrong password');
    await page.getByRole('alert').waitFor();
    assert.equal(await page.getByLabel('User name').inputValue(), 'ann');
    await fillIn(page, 'ann');
    await arrives(page, at(WIKI, '/deep?x=1'));
    const request = await seen(page);
    assert.equal(header(request, 'cf-access-authenticated-user-email'), 'ann@example.com');
    assert.ok(!JSON.stringify(request).includes('__Host-CF_Binding'));

    const held = await cookies(at(WIKI));
    for (const cookie of held) {
      assert.ok(cookie.secure && cookie.httpOnly && cookie.sameSite === 'Lax' && cookie.domain === WIKI, cookie.name);
    }
    assert.deepEqual(held.map((c) => c.name).sort(), ['CF_AppSession', 'CF_Authorization', '__Host-CF_AppSession', '__Host-CF_Binding']);

    // Another registrable domain, and another application on the same host: no second login.
    for (const url of [at(SHOP, '/cart'), at(WIKI, '/admin/')]) {
      await page.goto(url);
      assert.equal(page.url(), url);
      assert.equal(header(await seen(page), 'cf-access-authenticated-user-email'), 'ann@example.com');
    }
    await page.goto(at(WIKI, '/still'));
    assert.equal((await seen(page)).target, '/still');

    await page.goto(at(AUTH));
    await heading(page, 'Your applications');
    await page.getByRole('link', { name: /shop/ }).click();
    await arrives(page, at(SHOP));
    await page.goto(at(AUTH));
    await page.getByRole('button', { name: 'Sign out' }).click();
    await heading(page, 'You are signed out');
    for (const url of [at(WIKI), at(SHOP), at(WIKI, '/admin/')]) {
      await page.goto(url);
      await heading(page, 'Sign in');
    }
  },

  // A form's redirects are held against form-action to their very end: the application's own must not be.
  async redirect_after_form() {
    const page = await open();
    const away = at(SHOP, '/landed');
    await page.goto(at(WIKI, `/redirect?${away}`));
    await fillIn(page, 'ann');
    await arrives(page, away);
    assert.equal((await seen(page)).target, '/landed');
  },

  async logout() {
    const page = await open();
    await signIn(page, at(WIKI));
    // Another site can only make it ask. The navigation must be that site's, so the page does it, not the test.
    await page.goto(at(SHOP));
    await page.evaluate((url) => { location.href = url; }, at(WIKI, '/cdn-cgi/access/logout'));
    await arrives(page, at(WIKI, '/cdn-cgi/access/logout'));
    await heading(page, 'Sign out?');
    await page.goto(at(WIKI));
    await seen(page);
    // So can a form of its, which browsers send without the cookies.
    for (const host of [WIKI, AUTH]) {
      await page.goto(at(SHOP));
      await page.evaluate((url) => {
        const form = document.createElement('form');
        form.method = 'post';
        form.action = url;
        document.body.append(form);
        form.submit();
      }, at(host, '/cdn-cgi/access/logout'));
      await arrives(page, at(host, '/cdn-cgi/access/logout'));
      await heading(page, 'Sign out?');
    }
    await page.goto(at(AUTH));
    await heading(page, 'Your applications');
    // Nor does an image that somebody has put into an application.
    await page.goto(at(WIKI));
    await page.evaluate(() => new Promise((shown) => {
      const image = document.createElement('img');
      image.onload = image.onerror = shown;
      image.src = '/cdn-cgi/access/logout';
      document.body.append(image);
    }));
    await page.goto(at(WIKI));
    await seen(page);
    // The person can, with a click.
    await page.evaluate(() => {
      const link = document.createElement('a');
      link.href = '/cdn-cgi/access/logout';
      link.textContent = 'Leave';
      document.body.append(link);
    });
    await page.getByRole('link', { name: 'Leave' }).click();
    await arrives(page, at(WIKI, '/cdn-cgi/access/logout'));
    await heading(page, 'You are signed out');
    await page.goto(at(SHOP));
    await heading(page, 'Sign in');
    // Going back shows nothing that was behind the login.
    await page.goBack();
    await page.goBack();
    assert.ok(!(await page.content()).includes('cf-access-jwt-assertion'));
  },

  async deny() {
    const page = await open();
    await page.goto(at(WIKI));
    await fillIn(page, 'eve');
    await heading(page, 'You do not have access');
    const text = await page.locator('main').textContent();
    assert.match(text, /eve@evil\.test/);
    assert.match(await page.locator('footer').textContent(), /Ray ID [0-9a-f]{16}/);
    await page.getByRole('link', { name: 'Sign in as someone else' }).click();
    await heading(page, 'You are signed out');
    await page.goto(at(WIKI));
    await fillIn(page, 'ann');
    await arrives(page, at(WIKI));
  },

  // The application's token lasts a minute; the session longer. Nobody is asked again, and the token is another.
  async expiry() {
    const page = await open();
    await signIn(page, at(BRIEF));
    const token = async () =>
      (await page.context().cookies(at(BRIEF))).find((cookie) => cookie.name === 'CF_Authorization')?.value;
    const first = await token();
    await page.waitForTimeout(62_000);
    assert.equal(await token(), undefined, 'the browser has dropped it');
    await page.goto(at(BRIEF, '/again'));
    assert.equal((await seen(page)).target, '/again');
    assert.notEqual(await token(), first);
  },

  async oidc() {
    const page = await open({ javaScriptEnabled: false });
    await page.goto(at(WIKI, '/page'));
    await page.getByRole('link', { name: 'Continue with Okta' }).click();
    await page.waitForURL((url) => url.href.startsWith(options.idp));
    await page.locator('input[name=login]').fill('ann');
    await page.locator('input[name=password]').fill('any');
    await page.locator('button[type=submit]').click();
    await arrives(page, at(WIKI, '/page'));
    assert.equal(header(await seen(page), 'cf-access-authenticated-user-email'), 'ann@example.com');
  },

  // From an application elsewhere to the OpenID provider behind the node and back, and out again: without scripts, with a
  // picture of each step in every dress, and with them.
  async saml() {
    const { origin } = options.device;
    for (const javaScriptEnabled of [false, true]) {
      const page = await open({ javaScriptEnabled });
      const look = (name) => javaScriptEnabled ? undefined : inEveryDress(page, `saml-${name}`);
      await page.goto(`${origin}/app`);
      await heading(page, 'Sign in');
      await look('1-node');
      await page.getByRole('link', { name: 'Continue with Okta' }).click();
      await page.waitForURL((url) => url.href.startsWith(options.idp));
      await look('2-provider');
      await page.locator('input[name=login]').fill('ann');
      await page.locator('input[name=password]').fill('any');
      await page.locator('button[type=submit]').click();
      if (!javaScriptEnabled) {
        await heading(page, 'One moment');
        await look('3-onward');
        await page.getByRole('button', { name: 'Continue' }).click();
      }
      await arrives(page, `${origin}/app`);
      assert.deepEqual((await seen(page)).attributes.email, ['ann@example.com']);
      await look('4-application');
      await page.goto(`${origin}/logout`);
      await arrives(page, `${origin}/bye`);
      await look('5-out');
      assert.equal(JSON.parse(await (await page.goto(`${origin}/who`)).text()).authenticated, false);
      await page.goto(at(AUTH));
      await heading(page, 'Sign in');
      await page.context().close();
    }
  },

  // The same with a SAML provider, and out at the node: it leads to the provider, which asks again afterwards.
  async saml_upstream() {
    const { origin, provider, password } = options.device;
    const page = await open();
    const look = (name) => inEveryDress(page, `saml-upstream-${name}`);
    await page.goto(`${origin}/app`);
    await heading(page, 'Sign in');
    await look('1-node');
    await page.getByRole('link', { name: 'Continue with Campus' }).click();
    await page.waitForURL((url) => url.href.startsWith(provider));
    await look('2-provider');
    await page.locator('input[name=username]').fill('ann');
    await page.locator('input[name=password]').fill(password);
    await page.locator('button[type=submit], button').first().click();
    await arrives(page, `${origin}/app`);
    assert.deepEqual((await seen(page)).attributes.email, ['ann@example.com']);
    await look('3-application');
    await page.goto(at(AUTH));
    await heading(page, 'Your applications');
    await look('4-launcher');
    await page.getByRole('button', { name: 'Sign out' }).click();
    await heading(page, 'You are signed out');
    await page.getByRole('link', { name: 'Sign in again' }).waitFor();
    await look('5-out');
    await page.goto(at(WIKI));
    await heading(page, 'Sign in');
    await page.getByRole('link', { name: 'Continue with Campus' }).click();
    await page.locator('input[name=username]').waitFor();
  },

  // `portcullis access login` has opened this page; its answer leads from the form to the client's own address.
  async loopback() {
    const page = await open({ javaScriptEnabled: false });
    await page.goto(options.device.url);
    await heading(page, 'Sign in');
    await fillIn(page, 'ann');
    await heading(page, 'Sign this device in?');
    assert.match(await page.locator('dl').textContent(), /laptop.*127\.0\.0\.1.*ann@example\.com/s);
    await page.getByRole('button', { name: 'Sign the device in' }).click();
    await heading(page, 'You can close this page');
    assert.ok(page.url().startsWith('http://127.0.0.1:'), page.url());
  },

  async device() {
    const page = await open({ javaScriptEnabled: false });
    await page.goto(options.device.url);
    await fillIn(page, 'ann');
    await heading(page, 'Sign a device in');
    await page.getByLabel('Code').fill('BBBB-CCCC');
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.getByRole('alert').waitFor();
    await page.getByLabel('Code').fill(options.device.code.toLowerCase());
    await page.getByRole('button', { name: 'Continue' }).click();
    await heading(page, 'Sign this device in?');
    await page.getByRole('button', { name: 'Sign the device in' }).click();
    await heading(page, 'The device is signed in');
  },

  // Every page, in every dress: axe-core finds nothing, nothing sticks out, and a picture is taken.
  async pages() {
    mkdirSync(options.pictures, { recursive: true });
    for (const [size, viewport] of Object.entries(screens)) {
      for (const colorScheme of ['light', 'dark']) {
        const page = await open({ viewport, colorScheme, bypassCSP: true });
        const look = async (name) => {
          await page.screenshot({ path: `${options.pictures}/${name}-${size}-${colorScheme}.png` });
          await page.evaluate(axe);
          const { violations, passes } = await page.evaluate(() => axe.run(document, {
            runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
          }));
          const found = violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.html} ${n.failureSummary}`)}`);
          assert.deepEqual(found, [], `${name} ${size} ${colorScheme}`);
          assert.ok(passes.some((pass) => pass.id === 'color-contrast'), `${name}: contrast was not looked at`);
          const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          assert.ok(wide <= 0, `${name} ${size}: ${wide} pixels stick out`);
        };
        await page.goto(at(WIKI));
        await heading(page, 'Sign in');
        await look('login');
        await fillIn(page, 'ann', 'wrong password');
        await page.getByRole('alert').waitFor();
        await look('wrong-password');
        await page.getByLabel('User name').focus();
        await look('focus');
        await fillIn(page, 'eve');
        await heading(page, 'You do not have access');
        await look('denied');
        await page.goto(at(AUTH));
        await look('nothing-to-launch');
        await page.getByRole('button', { name: 'Sign out' }).click();
        await heading(page, 'You are signed out');
        await look('signed-out');
        await page.getByRole('link', { name: 'Sign in again' }).click();
        await heading(page, 'Sign in');
        await fillIn(page, 'ann');
        await heading(page, 'Your applications');
        await look('launcher');
        await page.goto(options.device.url);
        await heading(page, 'Sign a device in');
        await look('device-code');
        await page.getByLabel('Code').fill('BBBB-CCCC');
        await page.getByRole('button', { name: 'Continue' }).click();
        await page.getByRole('alert').waitFor();
        await look('device-wrong-code');
        await page.getByLabel('Code').fill(options.device.code);
        await page.getByRole('button', { name: 'Continue' }).click();
        await heading(page, 'Sign this device in?');
        await look('device-confirmation');
        const challenge = 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM';
        await page.goto(at(AUTH, '/cdn-cgi/access/cli/authorize?response_type=code&client_id=portcullis-access' +
          `&redirect_uri=http://127.0.0.1:4000/callback&state=x&code_challenge=${challenge}&code_challenge_method=S256` +
          `&dpop_jkt=${challenge}&device=${'a-rather-long-name-of-a-laptop-in-the-office-on-the-third-floor'}`));
        await heading(page, 'Sign this device in?');
        await look('client-confirmation');
        await page.goto(at(SHOP));
        await page.evaluate((url) => { location.href = url; }, at(AUTH, '/cdn-cgi/access/logout'));
        await heading(page, 'Sign out?');
        await look('sign-out');
        await page.goto(at(AUTH, '/no-such-page'));
        await look('not-found');
        await page.goto(at('down.example.com'));
        await look('origin-down');
        await page.goto(at(AUTH, '/cdn-cgi/access/callback?code=x&state=y'));
        await look('bad-state');
        await page.context().close();
      }
    }
    const page = await open({ colorScheme: 'dark' });
    await page.goto(options.device.url);
    await fillIn(page, 'ann');
    await page.getByLabel('Code').fill(options.device.code);
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.getByRole('button', { name: 'Cancel' }).click();
    await heading(page, 'The device was not let in');
    await page.screenshot({ path: `${options.pictures}/device-declined.png` });
  },
};

try {
  await scenarios[options.scenario]();
  assert.deepEqual(complaints, [], 'the browser complained');
  console.log('ok');
} catch (error) {
  const pages = browser.contexts().flatMap((context) => context.pages());
  for (const page of pages) console.log(page.url(), await page.locator('body').innerText().catch(() => ''));
  console.log(complaints.join('\n'));
  console.log(error);
  process.exitCode = 1;
} finally {
  await browser.close();
}
