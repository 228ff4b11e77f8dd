//! coturn, which relays for those who ask by TURN (RFC 8656): one allocation, one channel, and its messages as one flow.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::contender::{Contender, CountAt};
use super::lab::{Lab, NODE_V4, SINK};
use super::traffic::Traffic;
use super::{Options, other_cpu};
use crate::process::Process;

const PORT: u16 = 3_478;
const CHANNEL: u16 = 0x4000;
const MAGIC_COOKIE: u32 = 0x2112_a442;
// Methods (RFC 8656 §17) with their class bits, and attributes (§18).
const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
const SUCCESS: u16 = 0x0100;
const CHANNEL_NUMBER: u16 = 0x000c;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REQUESTED_TRANSPORT: u16 = 0x0019;

/// Without authentication, log or encryption, on a CPU of its own: no less can be asked of it.
pub fn contender(options: &Options) -> Result<(Contender, Traffic)> {
    let mut lab = Lab::two_ports("coturn")?;
    lab.receive_by_stack()?;
    let mut command = lab.node.command("taskset");
    command.args(["--cpu-list", &other_cpu(options.cpu).to_string(), "turnserver", "-n", "--no-auth"]);
    command.args(["--no-cli", "--no-tls", "--no-dtls", "--no-stdout-log", "--log-file=/dev/null"]);
    command.args(["--pidfile=/dev/null", "--relay-threads=1", "--realm=bench"]);
    command.args(["--listening-ip=198.18.255.254", "--relay-ip=198.19.255.254"]);
    let server = Process::spawn("coturn", command)?;
    let client: SocketAddr = "198.18.0.1:40000".parse()?;
    let socket = lab.generator.enter(|| UdpSocket::bind(client))??;
    open_channel(&socket).context("opening a channel of coturn")?;
    lab.absorb()?;

    // As long a frame as the other flows have: 22 bytes, of which the channel's header takes 4.
    let mut message = CHANNEL.to_be_bytes().to_vec();
    message.extend([0, 18]);
    message.extend([0x40; 18]);
    let traffic = Traffic::datagram(client, SocketAddr::new(NODE_V4, PORT), &message);
    Ok((Contender::new("coturn", lab, &traffic, CountAt::Sink, options.cpu, (server, socket))?, traffic))
}

fn open_channel(socket: &UdpSocket) -> Result<()> {
    socket.connect(SocketAddr::new(NODE_V4, PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    // 17: UDP.
    request(socket, ALLOCATE, &[(REQUESTED_TRANSPORT, &[17, 0, 0, 0])])?;
    let [high, low] = CHANNEL.to_be_bytes();
    let number = [high, low, 0, 0];
    request(socket, CHANNEL_BIND, &[(CHANNEL_NUMBER, &number), (XOR_PEER_ADDRESS, &xor_address(SINK)?)])
}

/// Sends a request until it is answered; the server may still be starting.
fn request(socket: &UdpSocket, method: u16, attributes: &[(u16, &[u8])]) -> Result<()> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len())?.to_be_bytes());
        body.extend(*value);
    }
    let mut message = method.to_be_bytes().to_vec();
    message.extend(u16::try_from(body.len())?.to_be_bytes());
    message.extend(MAGIC_COOKIE.to_be_bytes());
    // The transaction: one at a time is under way.
    message.extend([u8::try_from(method)?; 12]);
    message.extend(body);
    let mut answer = [0; 1_500];
    for _ in 0..20 {
        // Until the server listens, the kernel says that the port is unreachable.
        let length = socket.send(&message).and_then(|_| socket.recv(&mut answer));
        let Ok(length) = length else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if length >= 20 && answer[4..20] == message[4..20] {
            let kind = u16::from_be_bytes([answer[0], answer[1]]);
            ensure!(
                kind == method | SUCCESS,
                "the server refused request {method:#x}: {:02x?}",
                &answer[..length]
            );
            return Ok(());
        }
    }
    anyhow::bail!("the server does not answer")
}

/// RFC 8489 §14.2, IPv4.
fn xor_address(address: SocketAddr) -> Result<[u8; 8]> {
    let IpAddr::V4(ip) = address.ip() else { anyhow::bail!("IPv4 only") };
    let port = (address.port() ^ (MAGIC_COOKIE >> 16) as u16).to_be_bytes();
    let [a, b, c, d] = (u32::from(ip) ^ MAGIC_COOKIE).to_be_bytes();
    Ok([0, 1, port[0], port[1], a, b, c, d])
}
