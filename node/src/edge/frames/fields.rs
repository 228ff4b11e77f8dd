//! How many fields a block has (HPACK, RFC 7541 §6), without decoding them.

/// The longest block that is looked at: two changes of the table's size before one field with a status.
pub(super) const SHORT: usize = 20;

/// Whether a block has exactly one field.
pub(super) fn is_one(mut block: &[u8]) -> bool {
    while let Some((size, rest)) = size_update(block) {
        if size > u32::MAX as usize {
            return false;
        }
        block = rest;
    }
    field(block).is_some_and(<[u8]>::is_empty)
}

/// §6.3: a new size of the dynamic table, before the first field.
fn size_update(block: &[u8]) -> Option<(usize, &[u8])> {
    block.first().filter(|first| *first & 0xe0 == 0x20)?;
    integer(block, 5)
}

/// Skips a field.
fn field(block: &[u8]) -> Option<&[u8]> {
    let first = *block.first()?;
    if first & 0x80 != 0 {
        return Some(integer(block, 7)?.1);
    }
    let prefix = if first & 0x40 == 0 { 4 } else { 6 };
    let (name, mut rest) = integer(block, prefix)?;
    if name == 0 {
        rest = text(rest)?;
    }
    text(rest)
}

/// §5.2, a string: its length and as many bytes.
fn text(block: &[u8]) -> Option<&[u8]> {
    let (length, rest) = integer(block, 7)?;
    rest.get(length..)
}

/// §5.1: an integer whose first byte has so many bits of it.
fn integer(block: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = block.split_first()?;
    let full = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & full;
    if value < full {
        return Some((value, rest));
    }
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first()?;
        value += usize::from(byte & 0x7f) << shift;
        rest = after;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_field_is_told_from_none_and_two() {
        // Examples of RFC 7541, Appendix C: a literal with indexing, without, never indexed, and an indexed field.
        let custom = b"\x40\x0acustom-key\x0dcustom-header".as_slice();
        let path = b"\x04\x0c/sample/path".as_slice();
        let password = b"\x10\x08password\x06secret".as_slice();
        let status = [0x48, 0x03, b'4', b'3', b'1'].as_slice();
        let (method, sizes) = ([0x82].as_slice(), [0x20, 0x3f, 0xe1, 0x1f].as_slice());
        for one in [custom, path, password, status, method] {
            assert!(is_one(one), "{one:?}");
            assert!(is_one(&[sizes, one].concat()), "{one:?}");
            assert!(!is_one(&[one, method].concat()), "{one:?}");
            assert!(!is_one(&[one, status].concat()), "{one:?}");
            assert!(!is_one(&one[..one.len() - 1]), "{one:?}");
        }
        assert!(!is_one(&[]));
        assert!(!is_one(sizes));
        assert!(!is_one(&[0xff; 12]), "an integer without an end");
    }
}
