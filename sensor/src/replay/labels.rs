//! Labels for flows of captures, from a table of rules: the ground truth that a model is trained on.
//!
//! A CSV file with the columns `capture,prefix,protocol,label`. The label of a flow is that of the first row whose
//! `capture` (a file name, `*` and `?` allowed) names its capture, whose `prefix` holds the flow's initiator, and whose
//! `protocol` is the flow's or empty. A flow without a row has no label.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use sensor_common::packet::protocol;
use serde::Deserialize;

/// The rules of one file.
#[derive(Debug, Default)]
pub struct Labels {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    capture: String,
    prefix: IpNet,
    protocol: Option<u8>,
    label: String,
}

#[derive(Deserialize)]
struct Row {
    capture: String,
    prefix: String,
    #[serde(default)]
    protocol: String,
    label: String,
}

impl Labels {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// If the file cannot be read, or a row is not understood; the error names the line.
    pub fn read(path: &Path) -> Result<Labels> {
        let file = File::open(path).with_context(|| format!("open the labels {}", path.display()))?;
        Labels::parse(file).with_context(|| format!("read the labels {}", path.display()))
    }

    fn parse(input: impl Read) -> Result<Labels> {
        let mut rules = Vec::new();
        for (position, row) in
            csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input).deserialize().enumerate()
        {
            let row: Row = row?;
            rules.push(Rule::new(row).with_context(|| format!("line {}", position + 2))?);
        }
        Ok(Labels { rules })
    }

    /// The label of a flow, "" if no rule matches. `capture` is the file name without its folder.
    pub fn of(&self, capture: &str, initiator: IpAddr, number: u8) -> &str {
        self.rules
            .iter()
            .find(|rule| {
                rule.protocol.is_none_or(|wanted| wanted == number)
                    && rule.prefix.contains(&initiator)
                    && glob(rule.capture.as_bytes(), capture.as_bytes())
            })
            .map_or("", |rule| &rule.label)
    }
}

impl Rule {
    fn new(row: Row) -> Result<Rule> {
        let Row { capture, prefix, protocol, label } = row;
        let net = prefix
            .parse()
            .or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from))
            .with_context(|| format!("{prefix:?} is no prefix (like 198.18.0.0/16 or 2001:db8::/32)"))?;
        let protocol = if protocol.is_empty() { None } else { Some(number_of(&protocol)?) };
        Ok(Rule { capture, prefix: net, protocol, label })
    }
}

fn number_of(name: &str) -> Result<u8> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "icmp" => protocol::ICMP,
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "icmpv6" => protocol::ICMPV6,
        "sctp" => protocol::SCTP,
        number => number.parse().with_context(|| {
            format!("{name:?} is no protocol (tcp, udp, icmp, icmpv6, sctp, or a number from 0 to 255)")
        })?,
    })
}

/// Whether `text` matches `pattern`, in which `*` stands for any bytes and `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken so far.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("03-scan.pcap", "03-scan.pcap", true),
            ("*-scan*.pcap", "03-scan-slow.pcap", true),
            ("??-scan.pcap", "03-scan.pcap", true),
            ("?-scan.pcap", "03-scan.pcap", false),
            ("*scan", "03-scan.pcap", false),
            ("a*b*c", "aXbYbZc", true),
            ("", "x", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn the_first_matching_row_holds() {
        let rules = "capture,prefix,protocol,label\n\
                     a*.pcap,198.18.0.0/24,icmp,benign\n\
                     a*.pcap,198.18.0.0/24,,scan\n\
                     *,0.0.0.0/0,,benign\n\
                     *,2001:db8::1,17,flood\n";
        let labels = Labels::parse(rules.as_bytes()).expect("good rules");
        let host = "198.18.0.9".parse().expect("address");
        assert_eq!(labels.of("a1.pcap", host, protocol::ICMP), "benign");
        assert_eq!(labels.of("a1.pcap", host, protocol::TCP), "scan");
        assert_eq!(labels.of("b.pcap", host, protocol::TCP), "benign");
        assert_eq!(labels.of("b.pcap", "2001:db8::1".parse().expect("address"), protocol::UDP), "flood");
        assert_eq!(labels.of("b.pcap", "2001:db8::2".parse().expect("address"), protocol::UDP), "");
    }

    #[test]
    fn errors_name_the_line() {
        let error =
            Labels::parse("capture,prefix,protocol,label\n*,198.18.0.0/99,,x\n".as_bytes()).expect_err("bad prefix");
        let text = format!("{error:#}");
        assert!(text.contains("line 2") && text.contains("198.18.0.0/99"), "{text}");
    }
}
