//! The process that keeps two capabilities, spoken to directly: as the daemon does, and as a daemon would that somebody
//! has taken over.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use portcullis_tests::portcullis::binary;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::gated::Gated;

const ATTACH: u8 = 1;
const KEEP_NEIGHBOUR: u8 = 2;
const DONE: u8 = 0;
const FAILED: u8 = 1;

struct Helper {
    child: Child,
    socket: UnixDatagram,
}

impl Helper {
    fn start(lab: &Gated) -> Self {
        let (own, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let mut command = lab.edge.command(binary().unwrap());
        command.args(["helper", "--config"]).arg(lab.node.config()).stdin(Stdio::from(other));
        let socket = UnixDatagram::from(own);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { child: command.spawn().unwrap(), socket }
    }

    fn ask(&self, request: &[u8]) -> (u8, String) {
        rustix::net::send(&self.socket, request, SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 1024];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty()).unwrap();
        (answer[0], String::from_utf8_lossy(&answer[1..length]).into_owned())
    }

    fn keep(&self, ifindex: u32, address: &str) -> (u8, String) {
        let IpAddr::V4(address) = address.parse().unwrap() else { panic!("IPv4") };
        let mut request = vec![KEEP_NEIGHBOUR];
        request.extend(ifindex.to_ne_bytes());
        request.extend(address.to_ipv6_mapped().octets());
        self.ask(&request)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_helper_keeps_neighbours_of_configured_interfaces_and_does_nothing_else() {
    let lab = Gated::start();
    let helper = Helper::start(&lab);
    let index = |name: &'static str| {
        let socket = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        lab.edge.enter(move || rustix::net::netdevice::name_to_index(socket(), name).unwrap()).unwrap()
    };
    assert_eq!(helper.keep(index("eth0"), "198.18.40.2"), (DONE, String::new()));
    let neighbours = lab.edge.run("ip neigh show dev eth0").unwrap();
    assert!(neighbours.contains("198.18.40.2") && neighbours.contains("managed"), "{neighbours}");

    let (status, why) = helper.keep(index("lo"), "127.0.0.2");
    assert!(status == FAILED && why.contains("gate.interfaces"), "{why}");
    assert_eq!(helper.ask(&[KEEP_NEIGHBOUR, 1, 2]).0, FAILED);
    let (status, why) = helper.ask(&[&[ATTACH][..], b"lo"].concat());
    assert!(status == FAILED && why.contains("gate.interfaces"), "{why}");
    assert_eq!(helper.ask(&[77]).0, FAILED);
    assert_eq!(helper.keep(index("eth0"), "198.18.40.2").0, DONE, "it lives on");
}
