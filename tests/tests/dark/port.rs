use std::time::Duration;

use portcullis_common::{DeviceKeys, KNOCK_EPOCH_NS};
use portcullis_tests::portcullis::Connector;
use portcullis_tests::quic::Client;
use portcullis_tests::tunnel_lab::{ANSWER, Answer, FOR_STRANGER, SILENCE, TunnelLab, device, wall};

const SILENT: [Answer; 2] = [Answer::Nothing; 2];
const ANSWERED: [Answer; 2] = [Answer::Datagram; 2];

#[test]
fn a_dark_port_is_there_for_devices_alone() {
    is_there_for_devices_alone("xdp");
}

#[test]
fn a_dark_port_is_there_for_devices_alone_without_xdp() {
    is_there_for_devices_alone("userspace");
}

fn is_there_for_devices_alone(dataplane: &'static str) {
    let mut lab = TunnelLab::start(dataplane, false).unwrap();
    let client = Client::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let packet = |id: &[u8]| runtime.block_on(client.first_packet(id)).unwrap();
    let stranger = || packet(&[&[0x2a; 12], &wall().to_be_bytes()[..]].concat());
    // A fresh one, made so many epochs ago.
    let knock = |keys: DeviceKeys, ago: u64| {
        let packet = &packet;
        // Not so late in an epoch that the next one would begin meanwhile.
        while ago > 0 && wall() % KNOCK_EPOCH_NS > KNOCK_EPOCH_NS - 10_000_000_000 {
            std::thread::sleep(Duration::from_millis(100));
        }
        move || packet(&keys.knock(wall() - ago * KNOCK_EPOCH_NS, wall()).to_bytes())
    };

    assert_eq!(lab.answers(stranger, ANSWER).unwrap(), ANSWERED, "control: a port that is not dark");
    lab.set_dark(true).unwrap();
    assert_eq!(lab.answers(stranger, SILENCE).unwrap(), SILENT);
    assert_eq!(lab.answers(|| vec![0; 4], SILENCE).unwrap(), SILENT);

    // A token opens the port, in each family, and a connector's own device does from then on.
    let mut connectors = Vec::new();
    for (family, name) in ["hq", "branch"].into_iter().enumerate() {
        let token = lab.token(name, family).unwrap();
        let keys = device(&token).unwrap();
        assert_eq!(lab.answers(knock(keys, 0), ANSWER).unwrap(), ANSWERED, "an unspent token");
        let dir = lab.dir.join(name);
        let mut connector = Connector::enrol(&dir, Some(&lab.office), &token).unwrap();
        lab.connected(name, 2).unwrap();
        assert_eq!(lab.answers(knock(keys, 0), SILENCE).unwrap(), SILENT, "a spent token");
        assert!(connector.process.terminate(portcullis_tests::portcullis::START).unwrap().success());
        lab.connected(name, 0).unwrap();
        connectors.push((name, Connector::start(&dir, Some(&lab.office)).unwrap()));
        lab.connected(name, 2).unwrap();
    }

    // What a device may not do: knock as another, or late.
    let [keys, other] = ["a", "b"].map(|name| device(&lab.token(name, 0).unwrap()).unwrap());
    assert_eq!(lab.answers(knock(keys, 0), ANSWER).unwrap(), ANSWERED);
    let posing = DeviceKeys { device: keys.device, ..other };
    assert_eq!(lab.answers(knock(posing, 0), SILENCE).unwrap(), SILENT);
    assert_eq!(lab.answers(knock(keys, 2), SILENCE).unwrap(), SILENT, "captured long ago");
    assert_eq!(lab.answers(knock(keys, 1), ANSWER).unwrap(), ANSWERED, "as documented");

    // Revoked, and so it stays over a restart; those who were not come back.
    lab.node.admin(&["connector", "revoke", "a"]).unwrap();
    assert_eq!(lab.answers(knock(keys, 0), SILENCE).unwrap(), SILENT);
    lab.node.process().unwrap().kill().unwrap();
    if dataplane == "xdp" {
        assert_eq!(lab.answers(stranger, SILENCE).unwrap(), SILENT, "the gate outlives the daemon");
    }
    lab.node.restart().unwrap();
    assert_eq!(lab.answers(knock(keys, 0), SILENCE).unwrap(), SILENT);
    assert_eq!(lab.answers(knock(other, 0), ANSWER).unwrap(), ANSWERED);
    assert_eq!(lab.answers(stranger, SILENCE).unwrap(), SILENT);
    for (name, _) in &connectors {
        lab.connected(name, 2).unwrap();
    }

    lab.node.admin(&["connector", "revoke", "hq"]).unwrap();
    lab.connected("hq", 0).unwrap();
    lab.set_dark(false).unwrap();
    assert_eq!(lab.answers(stranger, ANSWER).unwrap(), ANSWERED, "control");
    assert_eq!(lab.answers(knock(keys, 0), SILENCE).unwrap(), SILENT, "a revoked knock is still no opening");
    assert_eq!(
        lab.answer(FOR_STRANGER[0], 9, b"?", SILENCE).unwrap(),
        Answer::Nothing,
        "nor is there ICMP elsewhere"
    );
}
