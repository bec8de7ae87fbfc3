//! nginx with known files, uploads, a protected area and its own counters.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::wait_for_port;
use crate::content;
use crate::netns::Ns;
use crate::process::{ChildGuard, output};

/// A running nginx:
///
/// * `/file-<size>.bin`: [`content`] (see [`content::SIZES`]);
/// * `/upload`: takes a POST, reads all of it, answers 204;
/// * `/private/…`: basic authentication, see [`Nginx::LOGIN`];
/// * `/status`: `stub_status`.
#[derive(Debug)]
pub struct Nginx {
    guard: ChildGuard,
    netns: Ns,
    _directory: TempDir,
}

/// nginx's own counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upkeep {
    /// Connections open now.
    pub active: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Requests since the start.
    pub requests: u64,
}

impl Nginx {
    /// User and password that `/private` accepts, as `curl -u` takes them.
    pub const LOGIN: &'static str = "reader:correct-horse";

    /// Starts nginx in `netns` on ports 80 and 443 of both families.
    ///
    /// # Errors
    /// If nginx or openssl is not installed or nginx does not come up.
    pub fn start(netns: &Ns) -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-nginx-").context("make nginx's directory")?;
        let root = directory.path();
        let www = root.join("www");
        std::fs::create_dir(&www).context("make the document root")?;
        content::write_all(&www)?;
        let certificate =
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=edge.test";
        output(
            std::process::Command::new("openssl")
                .args(certificate.split(' '))
                .current_dir(root)
                .args(["-keyout", "key.pem", "-out", "cert.pem"]),
        )?;
        let (user, password) = Self::LOGIN.split_once(':').unwrap_or_default();
        std::fs::write(root.join("htpasswd"), format!("{user}:{{PLAIN}}{password}\n")).context("write htpasswd")?;
        let path = root.join("nginx.conf");
        std::fs::write(&path, configuration(&root.to_string_lossy())).context("write nginx.conf")?;
        let mut command = netns.command("nginx");
        command.arg("-p").arg(root).arg("-c").arg(&path).args(["-e", "stderr"]);
        let guard = ChildGuard::spawn("nginx", &mut command, Some(&root.join("nginx.log")))?;
        wait_for_port(netns, 80, &guard, "nginx")?;
        Ok(Self { guard, netns: netns.clone(), _directory: directory })
    }

    /// nginx's counters, asked inside the namespace over `lo`, so that the asking is not part of the traffic.
    ///
    /// # Errors
    /// If nginx does not answer within two seconds.
    pub fn upkeep(&self) -> Result<Upkeep> {
        let status = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let answer = self
            .netns
            .http_get(status, "/status")
            .with_context(|| format!("ask nginx for its counters; its log:\n{}", self.guard.log()))?;
        let text = answer.split_once("\r\n\r\n").map_or("", |(_head, body)| body);
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
        Ok(Upkeep { active: at(0), accepted: at(1), requests: at(3) })
    }
}

fn configuration(root: &str) -> String {
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "  {kind}_temp_path {root}/{kind};");
    }
    // The workers stay root: the temporary directory is closed to others, and the namespace is all they serve.
    format!(
        "user root;
worker_processes 2;
daemon off;
pid {root}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
{temporary}  access_log off;
  sendfile on;
  keepalive_timeout 30s;
  keepalive_requests 100000;
  client_max_body_size 0;
  default_type application/octet-stream;
  ssl_certificate {root}/cert.pem;
  ssl_certificate_key {root}/key.pem;
  server {{
    listen 80 backlog=4096;
    listen [::]:80 backlog=4096;
    listen 443 ssl;
    listen [::]:443 ssl;
    root {root}/www;
    location = /status {{ stub_status; }}
    location = /upload {{ proxy_pass http://unix:{root}/sink.sock; }}
    location /private/ {{
      auth_basic \"private\";
      auth_basic_user_file {root}/htpasswd;
      alias {root}/www/;
    }}
  }}
  server {{ listen unix:{root}/sink.sock; return 204; }}
}}
"
    )
}
