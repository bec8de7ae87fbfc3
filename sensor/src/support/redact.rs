//! Takes addresses and secrets out of text. Pure. When in doubt, something is taken out.
//!
//! An address is replaced by a number, the same one by the same number, so that lines can still be put together. Prefix
//! lengths and ports stay, and so do addresses that are the same on every host (loopback, multicast, the beginning of
//! link-local).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What stands for a secret.
const REMOVED: &str = "(removed)";
/// Words in the names of secrets.
const SECRETS: [&str; 9] =
    ["password", "passwd", "secret", "token", "api_key", "apikey", "private_key", "credential", "authorization"];
/// Longest text of an address.
const LONGEST: usize = 45;

/// Remembers which address has which number.
#[derive(Debug, Default)]
pub struct Redactor {
    addresses: bool,
    known: HashMap<IpAddr, usize>,
}

impl Redactor {
    /// Secrets are always taken out; `addresses`: those, too.
    pub fn new(addresses: bool) -> Redactor {
        Redactor { addresses, known: HashMap::new() }
    }

    /// The text without them.
    pub fn text(&mut self, text: &str) -> String {
        let lines = text.split_inclusive('\n').map(|line| named_secret(&url_secret(line)));
        let text: String = lines.collect();
        if self.addresses { self.hide(&text) } else { text }
    }

    fn hide(&mut self, text: &str) -> String {
        let bytes = text.as_bytes();
        let part_of = |byte: u8| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.';
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        while at < bytes.len() {
            if !part_of(bytes[at]) {
                let end = bytes[at..].iter().position(|byte| part_of(*byte)).map_or(bytes.len(), |more| at + more);
                out.push_str(&text[at..end]);
                at = end;
                continue;
            }
            let end = bytes[at..].iter().position(|byte| !part_of(*byte)).map_or(bytes.len(), |more| at + more);
            self.run(text, at, end, &mut out);
            at = end;
        }
        out
    }

    /// From `at` to `end` are characters of which addresses are made.
    fn run(&mut self, text: &str, mut at: usize, end: usize, out: &mut String) {
        while at < end {
            match longest(text, at, end) {
                Some((to, address)) => {
                    if is_everywhere(address) {
                        out.push_str(&text[at..to]);
                    } else {
                        let next = self.known.len() + 1;
                        out.push_str(&format!("address-{}", self.known.entry(address).or_insert(next)));
                    }
                    at = to;
                }
                None => {
                    out.push_str(&text[at..=at]);
                    at += 1;
                }
            }
        }
    }
}

/// The longest address that begins at `at`: where it ends, and what it is.
fn longest(text: &str, at: usize, end: usize) -> Option<(usize, IpAddr)> {
    let end = end.min(at + LONGEST);
    let marks = text[at..end].bytes().filter(|byte| matches!(byte, b':' | b'.')).count();
    if marks < 2 {
        return None;
    }
    let address = |to: usize| text[at..to].parse().ok().filter(|_| !is_path(text, at, to));
    (at + 2..=end).rev().find_map(|to| Some((to, address(to)?)))
}

/// Whether this is a part of a path such as `sensor::bpf`, and no address with one group.
fn is_path(text: &str, at: usize, to: usize) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let groups = text[at..to].split(':').filter(|group| !group.is_empty()).count();
    let behind_word = text[at..to].starts_with("::") && text[..at].ends_with(word);
    let before_word = text[at..to].ends_with("::") && text[to..].starts_with(word);
    groups <= 1 && (behind_word || before_word)
}

/// Whether an address says nothing of a host or its network.
fn is_everywhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let link_local = v4 == Ipv4Addr::new(169, 254, 0, 0);
            v4.is_loopback() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || link_local
        }
        IpAddr::V6(v6) => {
            let link_local = v6 == Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
            v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || link_local
        }
    }
}

/// `scheme://user:password@host`.
fn url_secret(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#')).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user) => {
                out.push_str(REMOVED);
                &after[user..]
            }
            None => after,
        };
    }
    out + rest
}

/// `api_token = "…"`, `password: …`, `"secret":"…"`: the value, or the rest of the line if it has no quotes.
fn named_secret(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    // The same bytes in small letters, at the same places.
    let small = line.to_ascii_lowercase();
    loop {
        let offset = line.len() - rest.len();
        let found = SECRETS.iter().filter_map(|word| Some((small[offset..].find(word)?, word.len()))).min();
        let Some((at, length)) = found else { break };
        let after = at + length;
        let tail = &rest[after..];
        let name =
            tail.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '"' | '\'' | ' ' | '\t')));
        let value = name.filter(|end| matches!(tail.as_bytes()[*end], b'=' | b':')).map(|end| after + end + 1);
        let Some(value) = value else {
            out.push_str(&rest[..after]);
            rest = &rest[after..];
            continue;
        };
        let blank = rest[value..].len() - rest[value..].trim_start_matches([' ', '\t']).len();
        let begin = value + blank;
        let quote = rest[begin..].chars().next().filter(|c| matches!(c, '"' | '\''));
        let end = match quote {
            Some(quote) => rest[begin + 1..].find(quote).map(|end| begin + 1 + end + 1),
            None => None,
        };
        let end = end.unwrap_or_else(|| rest.trim_end_matches(['\n', '\r']).len().max(begin));
        out.push_str(&rest[..begin]);
        match quote {
            Some(quote) => out.push_str(&format!("{quote}{REMOVED}{quote}")),
            None => out.push_str(REMOVED),
        }
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(text: &str) -> String {
        Redactor::new(true).text(text)
    }

    #[test]
    fn addresses_become_numbers_and_the_rest_stays() {
        for (text, expected) in [
            ("src=198.18.0.1 dst=198.18.0.2", "src=address-1 dst=address-2"),
            ("tcp 198.18.0.1:443 > 198.18.0.1:80", "tcp address-1:443 > address-1:80"),
            ("[2001:db8::1]:443 and 2001:db8::1/64", "[address-1]:443 and address-1/64"),
            ("\"10.1.2.0/24\", \"fd00:1::/32\"", "\"address-1/24\", \"address-2/32\""),
            ("tcp,198.18.0.1:1,[::ffff:198.18.0.9]:2.", "tcp,address-1:1,[address-2]:2."),
            ("eth0:198.18.0.1", "eth0:address-1"),
            ("from 198.18.0.1.", "from address-1."),
            ("fe80::1%eth0", "address-1%eth0"),
            ("0: 198.18.0.1", "0: address-1"),
        ] {
            assert_eq!(hidden(text), expected, "{text}");
        }
        for text in [
            "127.0.0.0/8 ::1/128 169.254.0.0/16 fe80::/10 224.0.0.0/4 ff00::/8 255.255.255.255/32 0.0.0.0:9469",
            "2026-11-30T17:20:01.123456Z  INFO sensor::bpf::load: kernel 6.18.5",
            "sensor_packets_total{interface=\"eth0\"} 1.5e9",
            "größer 1.2 ms",
        ] {
            assert_eq!(hidden(text), text);
        }
        assert_eq!(Redactor::new(false).text("198.18.0.1"), "198.18.0.1");
    }

    #[test]
    fn whatever_stands_around_an_address_it_is_hidden() {
        for address in ["198.18.77.1", "2001:db8:77::1", "2001:db8:77:1:2:3:4:5", "::ffff:198.18.77.1"] {
            for around in ["A", "0x-", "=", "(", "'", "/", "a.", "1:", ".", ":", "v", " "] {
                for behind in ["", ".", ":", ":80", "/24", "%e", ")", ",", "\n", "z", "."] {
                    let text = format!("{around}{address}{behind}");
                    let out = hidden(&text);
                    assert!(!out.contains("77"), "{text:?} gives {out:?}");
                }
            }
        }
    }

    #[test]
    fn secrets_are_removed() {
        for (text, expected) in [
            ("url = \"https://bob:hunter2@example.org/x\"", "url = \"https://(removed)@example.org/x\""),
            ("# api_token = \"hunter2\" # note\n", "# api_token = \"(removed)\" # note\n"),
            ("password: hunter2 hunter2\nnext", "password: (removed)\nnext"),
            ("{\"Secret\":\"hunter2\",\"b\":1}", "{\"Secret\":\"(removed)\",\"b\":1}"),
            ("Authorization: Bearer hunter2", "Authorization: (removed)"),
            ("AUTH_TOKEN=hunter2", "AUTH_TOKEN=(removed)"),
            ("the token is gone", "the token is gone"),
            ("https://example.org/a@b", "https://example.org/a@b"),
        ] {
            assert_eq!(Redactor::new(false).text(text), expected, "{text}");
        }
    }
}
