//! The ports of EXPOSE: `8000-8010/udp`, and the forms with addresses that it lets pass.
//!
//! Follows BuildKit's `dockerfile2llb/convert_expose.go`.

/// Reads one word of EXPOSE into `port/protocol`, one for each port of a range.
///
/// A host port or an address before it (`127.0.0.1:80:80`) is checked and dropped.
///
/// # Errors
/// What is wrong with it, in BuildKit's words.
pub(crate) fn parse(word: &str) -> Result<Vec<String>, String> {
    let (address, host, container) = split(word);
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    if container.is_empty() {
        return Err(format!("invalid port: {word:?}: no port specified"));
    }
    let lower = protocol.to_lowercase();
    let protocol = match lower.as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => &lower,
        _ => return Err(format!("invalid port: {word:?}: invalid proto: {protocol}")),
    };
    check_address(address)?;
    let range = |text: &str| {
        let (start, end) = text.split_once('-').unwrap_or((text, text));
        Some((start.parse::<u16>().ok()?, end.parse::<u16>().ok()?)).filter(|(s, e)| s <= e)
    };
    let (start, end) = range(container).ok_or(format!("invalid containerPort: {container}"))?;
    if !host.is_empty() {
        let (first, last) = range(host).ok_or(format!("invalid hostPort: {host}"))?;
        if end != start && end - start != last - first {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {container} and {host}"
            ));
        }
    }
    Ok((start..=end).map(|port| format!("{port}/{protocol}")).collect())
}

/// Whether the word maps a port of the host, which EXPOSE can't.
pub(crate) fn is_mapping(word: &str) -> bool {
    word.contains(':')
}

/// `[[address:]host:]container`
fn split(word: &str) -> (&str, &str, &str) {
    match word.rsplit_once(':') {
        None => ("", "", word),
        Some((rest, container)) => match rest.rsplit_once(':') {
            None => ("", rest, container),
            Some((address, host)) => (address, host, container),
        },
    }
}

fn check_address(address: &str) -> Result<(), String> {
    let bare = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or(format!("invalid IP address {address}"))?,
        None => address,
    };
    if bare.is_empty() || bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    Err(format!("invalid IP address: {bare}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports() {
        let check = |word: &str, expected: &[&str]| assert_eq!(parse(word).unwrap(), expected);
        check("80", &["80/tcp"]);
        check("80/UDP", &["80/udp"]);
        check("80-82/sctp", &["80/sctp", "81/sctp", "82/sctp"]);
        check("8080:80", &["80/tcp"]);
        check("127.0.0.1:8080:80", &["80/tcp"]);
        check("[::1]:8080:80", &["80/tcp"]);
        check("8000-8010:80", &["80/tcp"]);
        check("0", &["0/tcp"]);
    }

    #[test]
    fn refuses_in_buildkits_words() {
        let check = |word: &str, expected: &str| assert_eq!(parse(word).unwrap_err(), expected);
        check("80/x", "invalid port: \"80/x\": invalid proto: x");
        check("/tcp", "invalid port: \"/tcp\": no port specified");
        check("65536", "invalid containerPort: 65536");
        check("82-80", "invalid containerPort: 82-80");
        check("x:80", "invalid hostPort: x");
        check("1.2.3:1:80", "invalid IP address: 1.2.3");
        check("1-5:80-82", "invalid ranges specified for container and host Ports: 80-82 and 1-5");
    }
}
