"""A SAML service provider that runs: pysaml2, which checks signatures with xmlsec1, behind Python's own server.

pysaml_sp.py metadata SETTINGS     its metadata, which offers logout by SOAP
pysaml_sp.py serve SETTINGS        serves, on 127.0.0.1

`/app` begins a sign-in, `/acs` takes the answer, `/who` tells whose session the browser has, `/soap` takes logout requests, which
end the session that they name. What went wrong is written to standard error.

SETTINGS is a JSON file: port, key and certificate (files), idp (the identity provider's metadata, a file that is read again for each
request), and optionally signed (whether answers to logout requests are; they are).
"""

import json
import secrets
import sys
import traceback
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs
from xml.etree import ElementTree

from saml2 import BINDING_HTTP_POST, BINDING_HTTP_REDIRECT, BINDING_SOAP
from saml2.cache import Cache
from saml2.client import Saml2Client
from saml2.config import SPConfig
from saml2.metadata import create_metadata_string
from saml2.s_utils import status_message_factory, success_status_factory
from saml2.samlp import STATUS_UNKNOWN_PRINCIPAL
from saml2.xmldsig import DIGEST_SHA256, SIG_RSA_SHA256

# pysaml2 takes a message out of its SOAP envelope with ElementTree, which renames prefixes that it does not know; no signature
# but pysaml2's own would hold after that.
for prefix, uri in [
    ("samlp", "urn:oasis:names:tc:SAML:2.0:protocol"),
    ("saml", "urn:oasis:names:tc:SAML:2.0:assertion"),
    ("ds", "http://www.w3.org/2000/09/xmldsig#"),
]:
    ElementTree.register_namespace(prefix, uri)


def configuration(settings, knows_provider=True):
    origin = f"http://127.0.0.1:{settings['port']}"
    config = {
        "entityid": f"{origin}/metadata",
        "key_file": settings["key"],
        "cert_file": settings["certificate"],
        "xmlsec_binary": "/usr/bin/xmlsec1",
        "delete_tmpfiles": True,
        # The node's own names of attributes are in none of pysaml2's lists.
        "allow_unknown_attributes": True,
        "service": {
            "sp": {
                "endpoints": {
                    "assertion_consumer_service": [(f"{origin}/acs", BINDING_HTTP_POST)],
                    "single_logout_service": [(f"{origin}/soap", BINDING_SOAP)],
                },
                "authn_requests_signed": False,
                "want_assertions_signed": True,
                "want_response_signed": True,
                "allow_unsolicited": False,
            },
        },
    }
    if knows_provider:
        config["metadata"] = {"local": [settings["idp"]]}
    loaded = SPConfig().load(config)
    # The name is about sign-in requests; it is what decides whether a logout request has to be signed.
    loaded.setattr("idp", "want_authn_requests_signed", True)
    return loaded


class Application:
    def __init__(self, settings):
        self.settings = settings
        # pysaml2's sessions, and by which name of the provider's a browser's cookie finds which.
        self.sessions = Cache()
        self.asked = {}
        self.browsers = {}

    def client(self):
        return Saml2Client(config=configuration(self.settings), identity_cache=self.sessions)

    def begin(self):
        asked, info = self.client().prepare_for_authenticate(binding=BINDING_HTTP_REDIRECT)
        self.asked[asked] = "/who"
        return dict(info["headers"])["Location"]

    def consume(self, answer):
        client = self.client()
        response = client.parse_authn_request_response(answer, BINDING_HTTP_POST, self.asked)
        info = response.session_info()
        cookie = secrets.token_urlsafe()
        self.browsers[cookie] = (info["name_id"], info["authn_info"], info["session_index"])
        return cookie

    def who(self, cookie):
        if cookie not in self.browsers:
            return {"authenticated": False}
        name_id, _, index = self.browsers[cookie]
        return {
            "authenticated": self.client().is_logged_in(name_id),
            "name_id": name_id.text,
            "session_index": index,
        }

    def end(self, envelope):
        client = self.client()
        request = client.parse_logout_request(envelope, BINDING_SOAP).message
        named = {index.text for index in request.session_index}
        status = status_message_factory("no such session", STATUS_UNKNOWN_PRINCIPAL)
        for name_id, _, index in list(self.browsers.values()):
            if index in named and name_id == request.name_id and client.is_logged_in(name_id):
                client.local_logout(name_id)
                status = success_status_factory()
        answer = client.create_logout_response(
            request,
            [BINDING_SOAP],
            status,
            sign=self.settings.get("signed", True),
            sign_alg=SIG_RSA_SHA256,
            digest_alg=DIGEST_SHA256,
        )
        # It is signed, and what carries it is not. (`handle_logout_request` would sign that, too, and cannot.)
        return client.apply_binding(BINDING_SOAP, answer, response=True, sign=False)["data"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(self.get)

    def do_POST(self):
        self.reply(self.post)

    def reply(self, answer):
        try:
            status, headers, body = answer()
        except Exception:
            traceback.print_exc()
            status, headers, body = 500, {}, "failed"
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def get(self):
        if self.path == "/app":
            return 302, {"Location": application.begin()}, ""
        cookies = SimpleCookie(self.headers.get("Cookie", ""))
        cookie = cookies["app"].value if "app" in cookies else None
        return 200, {"Content-Type": "application/json"}, json.dumps(application.who(cookie))

    def post(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/soap":
            return 200, {"Content-Type": "text/xml"}, application.end(body)
        cookie = application.consume(parse_qs(body)["SAMLResponse"][0])
        return 303, {"Location": "/who", "Set-Cookie": f"app={cookie}; Path=/; HttpOnly"}, ""


step, path = sys.argv[1:]
with open(path) as file:
    settings = json.load(file)
if step == "metadata":
    sys.stdout.buffer.write(create_metadata_string(None, config=configuration(settings, False), sign=False))
else:
    application = Application(settings)
    HTTPServer(("127.0.0.1", settings["port"]), Handler).serve_forever()
