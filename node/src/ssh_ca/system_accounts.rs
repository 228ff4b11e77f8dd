//! Accounts that no address may stand for: what distributions make with a uid below 1000, the groups that give rights
//! (so that nobody makes users of these names by accident), and the first users of cloud images, who can all be root.

/// In order, for the search.
const NAMES: [&str; 99] = [
    "abrt",
    "adm",
    "admin",
    "administrator",
    "ansible",
    "apache",
    "apt",
    "audio",
    "avahi",
    "backup",
    "bin",
    "bind",
    "bitnami",
    "centos",
    "chrony",
    "clickhouse",
    "cloud-user",
    "core",
    "daemon",
    "dbus",
    "debian",
    "dhcpcd",
    "disk",
    "dnsmasq",
    "docker",
    "ec2-user",
    "elasticsearch",
    "fedora",
    "ftp",
    "fwupd-refresh",
    "games",
    "gdm",
    "geoclue",
    "git",
    "gitlab-runner",
    "gnats",
    "grafana",
    "halt",
    "haproxy",
    "http",
    "httpd",
    "irc",
    "jenkins",
    "kmem",
    "kube",
    "libstoragemgmt",
    "libvirt",
    "list",
    "lp",
    "lxd",
    "mail",
    "man",
    "memcache",
    "messagebus",
    "mongodb",
    "mysql",
    "named",
    "news",
    "nginx",
    "nobody",
    "nogroup",
    "ntp",
    "opc",
    "operator",
    "pcp",
    "pi",
    "polkitd",
    "portcullis",
    "postfix",
    "postgres",
    "prometheus",
    "proxy",
    "pulse",
    "rabbitmq",
    "redis",
    "rocky",
    "root",
    "rpc",
    "rpcuser",
    "rtkit",
    "saned",
    "service",
    "shadow",
    "shutdown",
    "sshd",
    "sssd",
    "sudo",
    "sync",
    "sys",
    "syslog",
    "tcpdump",
    "toor",
    "tss",
    "ubuntu",
    "uucp",
    "uuidd",
    "vagrant",
    "wheel",
    "www-data",
];

/// Beginnings that distributions keep for themselves.
const PREFIXES: [&str; 4] = ["_", "systemd-", "debian-", "nixbld"];

/// Whether `name`, in lower case, is the name of such an account.
pub(super) fn is_system_account(name: &str) -> bool {
    NAMES.binary_search(&name).is_ok() || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched() {
        assert!(NAMES.is_sorted_by(|a, b| a < b), "{NAMES:?}");
        assert!(NAMES.iter().all(|name| is_system_account(name) && *name == name.to_lowercase()));
        assert!(["ann", "roots", "admins", "systemdeveloper"].iter().all(|name| !is_system_account(name)));
    }

    /// What this machine's distribution has made, while it is one.
    #[test]
    fn this_machines_system_accounts_are_known() {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        for line in passwd.lines() {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next().unwrap(), fields.nth(1).unwrap());
            // What packages of the lab have made is theirs to name; the base system's accounts end at 99.
            if uid.parse::<u32>().is_ok_and(|uid| uid < 100) {
                assert!(is_system_account(name), "{line}");
            }
        }
    }
}
