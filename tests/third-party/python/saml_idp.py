"""A SAML identity provider's tools, by python-xmlsec: one JSON object a line in, one out.

{"op": "read", "url" or "message"}                      what a request says: id, issuer, acs, destination, force, signed
{"op": "sign", "xml", "key", "method", "digest", "prefixes"}   xml with a signature after its first child
{"op": "encrypt", "xml", "certificate", "method"}       an EncryptedAssertion of xml
"""

import base64
import json
import sys
import zlib
from urllib.parse import parse_qs, urlsplit

import xmlsec
from lxml import etree

SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
EC = "http://www.w3.org/2001/10/xml-exc-c14n#"


def read(command):
    if "url" in command:
        query = parse_qs(urlsplit(command["url"]).query)
        text = zlib.decompress(base64.b64decode(query["SAMLRequest"][0]), -15)
        signed = "Signature" in query
    else:
        text = base64.b64decode(command["message"])
        signed = b":Signature" in text
    root = etree.fromstring(text)
    return {
        "id": root.get("ID"),
        "issuer": root.findtext("{%s}Issuer" % SAML),
        "acs": root.get("AssertionConsumerServiceURL"),
        "destination": root.get("Destination"),
        "force": root.get("ForceAuthn"),
        "signed": signed,
    }


def sign(command):
    root = etree.fromstring(command["xml"].encode())
    xmlsec.tree.add_ids(root, ["ID"])
    method = getattr(xmlsec.Transform, command.get("method", "RSA_SHA256"))
    signature = xmlsec.template.create(root, xmlsec.Transform.EXCL_C14N, method, ns="ds")
    root.insert(1, signature)
    digest = getattr(xmlsec.Transform, command.get("digest", "SHA256"))
    reference = xmlsec.template.add_reference(signature, digest, uri="#" + root.get("ID"))
    xmlsec.template.add_transform(reference, xmlsec.Transform.ENVELOPED)
    transform = xmlsec.template.add_transform(reference, xmlsec.Transform.EXCL_C14N)
    if command.get("prefixes"):
        inclusive = etree.SubElement(transform, "{%s}InclusiveNamespaces" % EC, nsmap={"ec": EC})
        inclusive.set("PrefixList", command["prefixes"])
    context = xmlsec.SignatureContext()
    context.key = xmlsec.Key.from_file(command["key"], xmlsec.KeyFormat.PEM)
    context.sign(signature)
    return {"xml": etree.tostring(root).decode()}


def encrypt(command):
    assertion = etree.fromstring(command["xml"].encode())
    outer = etree.Element("{%s}EncryptedAssertion" % SAML, nsmap={"saml": SAML})
    outer.append(assertion)
    cipher, bits = {
        "aes256-gcm": (xmlsec.Transform.AES256_GCM, 256),
        "aes128-gcm": (xmlsec.Transform.AES128_GCM, 128),
        "aes256-cbc": (xmlsec.Transform.AES256, 256),
    }[command.get("method", "aes256-gcm")]
    transport = {
        "oaep": xmlsec.Transform.RSA_OAEP,
        "pkcs1": xmlsec.Transform.RSA_PKCS1,
    }[command.get("transport", "oaep")]
    template = xmlsec.template.encrypted_data_create(
        outer, cipher, type=xmlsec.EncryptionType.ELEMENT, ns="xenc"
    )
    xmlsec.template.encrypted_data_ensure_cipher_value(template)
    info = xmlsec.template.encrypted_data_ensure_key_info(template, ns="ds")
    wrapped = xmlsec.template.add_encrypted_key(info, transport)
    xmlsec.template.encrypted_data_ensure_cipher_value(wrapped)
    manager = xmlsec.KeysManager()
    manager.add_key(xmlsec.Key.from_file(command["certificate"], xmlsec.KeyFormat.CERT_PEM, None))
    context = xmlsec.EncryptionContext(manager)
    context.key = xmlsec.Key.generate(xmlsec.KeyData.AES, bits, xmlsec.KeyDataType.SESSION)
    context.encrypt_xml(template, assertion)
    return {"xml": etree.tostring(outer).decode()}


for line in sys.stdin:
    command = json.loads(line)
    answer = {"read": read, "sign": sign, "encrypt": encrypt}[command["op"]](command)
    print(json.dumps(answer), flush=True)
