//! Certificates for tests with TLS, made by the machine's `openssl`.

use std::path::Path;
use std::process::{Command, Stdio};

/// Makes an authority (`ca.crt`) and a certificate (`server.crt`, `server.key`) of it for these names and addresses, as
/// in `DNS:localhost` and `IP:127.0.0.1`; says no where `openssl` cannot.
pub fn make(dir: &Path, names: &[&str]) -> bool {
    let openssl = |arguments: &str| {
        let status = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir)
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    let extensions = format!("subjectAltName={}\nbasicConstraints=CA:FALSE\n", names.join(","));
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(dir.join("extensions"), extensions).is_ok()
        && openssl(&format!(
            "req -x509 {ec} -keyout ca.key -out ca.crt -days 30 -subj /CN=authority -addext basicConstraints=critical,CA:TRUE"
        ))
        && openssl(&format!("req {ec} -keyout server.key -out server.csr -subj /CN=server"))
        && openssl(
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 30 -extfile extensions",
        )
}
