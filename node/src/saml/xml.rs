//! Strict reading of XML: what has two readings is refused before anything else looks at it.
//!
//! No document type (so no entities beyond the five of XML itself), no processing instructions, no ID that is there
//! twice, and bounds on bytes, depth, nodes, attributes and namespaces: the last two before the parser, which compares
//! each with the others, has seen any. Comments are refused in messages, where they have hidden
//! the end of a name from readers that stop at the first text node; metadata, which people write, may have them.

use std::sync::Arc;

use roxmltree::{Document, NodeType, ParsingOptions};

use super::c14n::canonical_with;

/// How much a document may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    pub nodes: u32,
    pub depth: usize,
    /// Attributes of all elements, and what looks like one.
    pub attributes: usize,
    /// Declarations of namespaces, anywhere, and what looks like one.
    pub namespaces: usize,
    pub comments: bool,
}

/// Of protocol messages.
pub const MESSAGE: Limits =
    Limits { bytes: 64 * 1024, nodes: 4096, depth: 32, attributes: 1024, namespaces: 128, comments: false };
/// Of an identity provider's answer, which may hold a thousand groups and be encrypted.
pub const ANSWER: Limits = Limits { bytes: 192 * 1024, nodes: 8192, attributes: 4096, ..MESSAGE };
/// Of metadata from a file.
pub const METADATA: Limits = Limits {
    bytes: 1024 * 1024,
    nodes: 20_000,
    depth: 32,
    attributes: 16_384,
    namespaces: 1024,
    comments: true,
};

/// Bytes of a namespace's name, of which every element and attribute in it has a copy.
const NAMESPACE: usize = 512;
/// Of one element.
const ATTRIBUTES: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("the document is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the document is not UTF-8")]
    NotUtf8,
    #[error("document types are not accepted")]
    DocumentType,
    #[error("processing instructions are not accepted")]
    ProcessingInstruction,
    #[error("comments are not accepted in messages")]
    Comment,
    #[error("elements are nested deeper than {0}")]
    TooDeep(usize),
    #[error("there are too many attributes")]
    TooManyAttributes,
    #[error("there are too many declarations of namespaces")]
    TooManyNamespaces,
    #[error("the name of a namespace is longer than {NAMESPACE} bytes")]
    LongNamespace,
    #[error("a prefix stands for no namespace")]
    Undeclared,
    #[error("an ID is there twice")]
    DuplicateId,
    #[error("not well-formed: {0}")]
    Malformed(String),
}

/// A namespace and the prefix that we write for it.
#[derive(Debug, Clone, Copy)]
pub struct Namespace {
    pub prefix: &'static str,
    pub uri: &'static str,
}

/// A qualified name; without a namespace both `prefix` and `namespace` are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub prefix: String,
    pub namespace: String,
    pub local: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    pub name: Name,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Element(Element),
    Text(String),
}

/// Prefixes and the namespaces they stand for; the empty prefix is the default.
pub(super) type Scope = Arc<[(String, String)]>;

/// An element with resolved names. Which namespaces are declared where follows from the names, but for a signature that
/// lists prefixes to declare besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub name: Name,
    pub attributes: Vec<Attribute>,
    pub children: Vec<Node>,
    /// What was declared where it stood; elements that declare nothing share their parent's. Of those we make, nothing.
    pub(super) scope: Scope,
}

impl Element {
    pub fn new(namespace: Namespace, local: &str) -> Self {
        let name = Name {
            prefix: namespace.prefix.to_owned(),
            namespace: namespace.uri.to_owned(),
            local: local.to_owned(),
        };
        Self { name, attributes: Vec::new(), children: Vec::new(), scope: Arc::default() }
    }

    pub fn with(mut self, attribute: &str, value: impl Into<String>) -> Self {
        let name = Name { prefix: String::new(), namespace: String::new(), local: attribute.to_owned() };
        self.attributes.push(Attribute { name, value: value.into() });
        self
    }

    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.children.push(Node::Text(text.into()));
        self
    }

    pub fn child(mut self, child: Self) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    pub fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    pub fn is(&self, namespace: Namespace, local: &str) -> bool {
        self.name.namespace == namespace.uri && self.name.local == local
    }

    /// The value of an attribute that has no namespace.
    pub fn attribute(&self, local: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name.namespace.is_empty() && attribute.name.local == local)
            .map(|attribute| attribute.value.as_str())
    }

    pub fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    pub fn all(&self, namespace: Namespace, local: &str) -> impl Iterator<Item = &Self> {
        self.elements().filter(move |element| element.is(namespace, local))
    }

    /// The one child of this name; nothing where there are several.
    pub fn one(&self, namespace: Namespace, local: &str) -> Option<&Self> {
        let mut found = self.elements().filter(|element| element.is(namespace, local));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// All the text of an element that holds nothing else, without white space around it.
    pub fn content(&self) -> Option<String> {
        let mut content = String::new();
        for node in &self.children {
            match node {
                Node::Text(text) => content.push_str(text),
                Node::Element(_) => return None,
            }
        }
        Some(content.trim_matches([' ', '\t', '\r', '\n']).to_owned())
    }

    /// How many elements of this name there are, this one and all below it.
    pub fn count(&self, namespace: Namespace, local: &str) -> usize {
        usize::from(self.is(namespace, local))
            + self.elements().map(|element| element.count(namespace, local)).sum::<usize>()
    }
}

/// Reads one document.
pub fn parse(bytes: &[u8], limits: Limits) -> Result<Element, XmlError> {
    if bytes.len() > limits.bytes {
        return Err(XmlError::TooLarge(limits.bytes));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::NotUtf8)?;
    // Counted wherever they stand: what only looks like one costs a sender some of what there may be, and hides nothing.
    if text.matches("xmlns").count() > limits.namespaces {
        return Err(XmlError::TooManyNamespaces);
    }
    if text.matches('=').count() > limits.attributes {
        return Err(XmlError::TooManyAttributes);
    }
    // The parser takes an empty document type for none.
    if text.contains("<!DOCTYPE") {
        return Err(XmlError::DocumentType);
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: limits.nodes, entity_resolver: None };
    let document = Document::parse_with_options(text, options).map_err(|error| malformed(&error))?;
    let mut reader = Reader { text, limits, ids: Vec::new() };
    for node in document.root().children().filter(|node| !node.is_element()) {
        reader.admit(node.node_type())?;
    }
    let element = reader.element(document.root_element(), &Arc::default(), 1)?;
    reader.ids.sort_unstable();
    if reader.ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(XmlError::DuplicateId);
    }
    Ok(element)
}

/// Reads an element that stood in the place of `place`, whose namespaces it may lean on: encryption takes text out of its
/// surroundings and leaves their declarations behind (XML Encryption §4.3.3).
pub(super) fn parse_inside(place: &Element, text: &[u8]) -> Option<Element> {
    let mut around = Element::new(Namespace { prefix: "", uri: "" }, "around");
    around.scope = Arc::clone(&place.scope);
    let prefixes: Vec<&str> = place.scope.iter().map(|(prefix, _)| prefix.as_str()).collect();
    let listed: Vec<&str> = prefixes.iter().map(|p| if p.is_empty() { "#default" } else { p }).collect();
    let around = canonical_with(&around, &listed);
    let (open, close) = around.split_at_checked(around.len().checked_sub("</around>".len())?)?;
    let whole = [open.as_bytes(), text, close.as_bytes()].concat();
    let mut whole = parse(&whole, ANSWER).ok()?;
    match (whole.children.pop()?, whole.children.is_empty()) {
        (Node::Element(element), true) => Some(element),
        _ => None,
    }
}

/// The parser's words name what it met, which may be as long as the document.
fn malformed(error: &roxmltree::Error) -> XmlError {
    XmlError::Malformed(error.to_string().chars().filter(|c| !c.is_control()).take(120).collect())
}

struct Reader<'a> {
    text: &'a str,
    limits: Limits,
    ids: Vec<String>,
}

impl Reader<'_> {
    fn element(
        &mut self,
        node: roxmltree::Node<'_, '_>,
        around: &Scope,
        depth: usize,
    ) -> Result<Element, XmlError> {
        if depth > self.limits.depth {
            return Err(XmlError::TooDeep(self.limits.depth));
        }
        let scope = scope_of(node, around);
        // What Namespaces in XML 1.0 forbids (§2.2), and the parser takes.
        if scope.iter().any(|(prefix, uri)| !prefix.is_empty() && uri.is_empty()) {
            return Err(XmlError::Undeclared);
        }
        if scope.iter().any(|(_, uri)| uri.len() > NAMESPACE) {
            return Err(XmlError::LongNamespace);
        }
        let mut attributes = Vec::new();
        for attribute in node.attributes() {
            if attributes.len() == ATTRIBUTES {
                return Err(XmlError::TooManyAttributes);
            }
            let name = Name {
                prefix: self.prefix_at(attribute.range().start),
                namespace: attribute.namespace().unwrap_or_default().to_owned(),
                local: attribute.name().to_owned(),
            };
            if name.local.eq_ignore_ascii_case("id") {
                self.ids.push(attribute.value().to_owned());
            }
            attributes.push(Attribute { name, value: attribute.value().to_owned() });
        }
        let mut children = Vec::new();
        for child in node.children() {
            match child.node_type() {
                NodeType::Element => children.push(Node::Element(self.element(child, &scope, depth + 1)?)),
                NodeType::Text => children.push(Node::Text(child.text().unwrap_or_default().to_owned())),
                other => self.admit(other)?,
            }
        }
        let name = Name {
            prefix: self.prefix_at(node.range().start + 1),
            namespace: node.tag_name().namespace().unwrap_or_default().to_owned(),
            local: node.tag_name().name().to_owned(),
        };
        Ok(Element { name, attributes, children, scope })
    }

    /// What is neither element nor text.
    fn admit(&self, kind: NodeType) -> Result<(), XmlError> {
        match kind {
            NodeType::Comment if self.limits.comments => Ok(()),
            NodeType::Comment => Err(XmlError::Comment),
            NodeType::PI => Err(XmlError::ProcessingInstruction),
            NodeType::Root | NodeType::Element | NodeType::Text => Ok(()),
        }
    }

    /// The prefix of the name at this place: the parser resolves prefixes and forgets them, canonical XML keeps them.
    fn prefix_at(&self, start: usize) -> String {
        let rest = self.text.get(start..).unwrap_or_default();
        let end = rest.find(|c: char| c.is_ascii_whitespace() || "=/>".contains(c)).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        name.split_once(':').map(|(prefix, _)| prefix.to_owned()).unwrap_or_default()
    }
}

/// The namespaces where `node` stands, shared with `around` where they are the same.
fn scope_of(node: roxmltree::Node<'_, '_>, around: &Scope) -> Scope {
    let declared = || {
        let all = node.namespaces().map(|namespace| (namespace.name().unwrap_or_default(), namespace.uri()));
        all.filter(|(prefix, _)| *prefix != "xml")
    };
    let same = declared().eq(around.iter().map(|(prefix, uri)| (prefix.as_str(), uri.as_str())));
    match same {
        true => Arc::clone(around),
        false => declared().map(|(prefix, uri)| (prefix.to_owned(), uri.to_owned())).collect(),
    }
}
