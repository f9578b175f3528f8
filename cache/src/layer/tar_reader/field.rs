//! Fields of headers: numbers, texts, the checksum.

use tar::Header;

use super::TarError;

/// Compares a header with its checksum.
pub(super) fn check_sum(header: &Header) -> Result<(), TarError> {
    let bytes = header.as_bytes();
    let wanted = number(&header.as_old().cksum, "checksum")?;
    let without = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]);
    let unsigned: u64 = without.clone().map(|byte| u64::from(*byte)).sum();
    // Some old writers summed signed bytes.
    let signed: i64 = without.map(|byte| i64::from(byte.cast_signed())).sum();
    if wanted == unsigned || i64::try_from(wanted) == Ok(signed) {
        Ok(())
    } else {
        Err(TarError::Checksum)
    }
}

/// The number of a device at `offset`.
pub(super) fn device(header: &Header, offset: usize) -> Result<u32, TarError> {
    let field = &header.as_bytes()[offset..offset + 8];
    u32::try_from(number(field, "device")?).map_err(|_| TarError::Number { field: "device" })
}

/// A number of which none is below zero.
pub(super) fn number(field: &[u8], name: &'static str) -> Result<u64, TarError> {
    let value = signed_number(field, name)?;
    u64::try_from(value).map_err(|_| TarError::Number { field: name })
}

/// A number in octal, or in GNU's binary form for those that do not fit.
pub(super) fn signed_number(field: &[u8], name: &'static str) -> Result<i64, TarError> {
    let wrong = || TarError::Number { field: name };
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = i128::from(first.cast_signed());
        for byte in &field[1..] {
            value = value.checked_mul(256).ok_or_else(wrong)? + i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return Err(wrong());
    }
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(wrong),
        _ => Err(wrong()),
    })
}

/// A number in digits, as PAX and sparse maps have them.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        // Sizes and times are signed where they end up.
        value.checked_mul(10)?.checked_add(digit).filter(|value| *value <= i64::MAX.unsigned_abs())
    })
}

/// A text that a zero byte may end.
pub(super) fn until_zero(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].to_vec()
}
