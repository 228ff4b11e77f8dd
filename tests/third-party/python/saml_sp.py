"""A SAML service provider: python3-saml in strict mode, one step a call.

saml_sp.py request SETTINGS redirect|post [force|passive]   the request, as JSON: id, and url or message
saml_sp.py response SETTINGS ID < MESSAGE                    what it makes of an answer to the request ID (- for none)

SETTINGS is a JSON file: acs, entity_id, metadata (the identity provider's, a file), and optionally certificate and key
of the service provider (files; requests are then signed), encrypted (whether assertions must be).
"""

import json
import sys
from urllib.parse import urlsplit

from onelogin.saml2.auth import OneLogin_Saml2_Auth
from onelogin.saml2.authn_request import OneLogin_Saml2_Authn_Request
from onelogin.saml2.constants import OneLogin_Saml2_Constants as Names
from onelogin.saml2.idp_metadata_parser import OneLogin_Saml2_IdPMetadataParser
from onelogin.saml2.settings import OneLogin_Saml2_Settings
from onelogin.saml2.utils import OneLogin_Saml2_Utils


def read(path):
    with open(path) as file:
        return file.read()


def settings(path):
    given = json.loads(read(path))
    signs = "key" in given
    sp = {
        "entityId": given["entity_id"],
        "assertionConsumerService": {"url": given["acs"], "binding": Names.BINDING_HTTP_POST},
        "NameIDFormat": given.get("name_id_format", Names.NAMEID_UNSPECIFIED),
    }
    if signs:
        sp["x509cert"] = read(given["certificate"])
        sp["privateKey"] = read(given["key"])
    ours = {
        "strict": True,
        "sp": sp,
        "security": {
            "authnRequestsSigned": signs,
            "wantMessagesSigned": True,
            "wantAssertionsSigned": True,
            "wantAssertionsEncrypted": given.get("encrypted", False),
            "rejectDeprecatedAlgorithm": True,
            "signatureAlgorithm": Names.RSA_SHA256,
            "digestAlgorithm": Names.SHA256,
            "requestedAuthnContext": given.get("contexts", True),
        },
    }
    found = OneLogin_Saml2_IdPMetadataParser.parse(read(given["metadata"]))
    return OneLogin_Saml2_IdPMetadataParser.merge_settings(ours, found), given["acs"]


def at(acs, post=None):
    parts = urlsplit(acs)
    return {
        "https": "on" if parts.scheme == "https" else "off",
        "http_host": parts.netloc,
        "script_name": parts.path,
        "get_data": {},
        "post_data": post or {},
    }


def request(config, acs, binding, *how):
    force, passive = "force" in how, "passive" in how
    if binding == "redirect":
        auth = OneLogin_Saml2_Auth(at(acs), config)
        url = auth.login(return_to="https://sp.example.org/deep?x=1&y=2", force_authn=force, is_passive=passive)
        return {"id": auth.get_last_request_id(), "url": url}
    loaded = OneLogin_Saml2_Settings(config)
    made = OneLogin_Saml2_Authn_Request(loaded, force_authn=force, is_passive=passive)
    xml = made.get_xml()
    if config["security"]["authnRequestsSigned"]:
        xml = OneLogin_Saml2_Utils.add_sign(
            xml, loaded.get_sp_key(), loaded.get_sp_cert(), False, Names.RSA_SHA256, Names.SHA256
        )
    return {"id": made.get_id(), "message": OneLogin_Saml2_Utils.b64encode(xml)}


def response(config, acs, asked):
    auth = OneLogin_Saml2_Auth(at(acs, {"SAMLResponse": sys.stdin.read()}), config)
    auth.process_response(request_id=None if asked == "-" else asked)
    return {
        "errors": auth.get_errors(),
        "reason": auth.get_last_error_reason(),
        "name_id": auth.get_nameid(),
        "format": auth.get_nameid_format(),
        "attributes": auth.get_attributes(),
        "session_index": auth.get_session_index(),
    }


def main():
    step, path, *rest = sys.argv[1:]
    config, acs = settings(path)
    print(json.dumps({"request": request, "response": response}[step](config, acs, *rest)))


main()
