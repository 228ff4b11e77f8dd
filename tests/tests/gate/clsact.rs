//! The egress program as a filter, as on kernels without tcx: forced here, whatever this kernel has.

use aya::Ebpf;
use aya::EbpfLoader;
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType, TcHandle};
use portcullis::gate::{self, EgressHook, GateConfig, GateError};
use portcullis_tests::netns::run;

use crate::lab::{ANSWER, Echo, Lab, SILENCE};
use crate::lifecycle::Holder;

#[test]
fn the_hosts_own_questions_are_answered() {
    let lab = Lab::new();
    let (_asked, _planted) = (Echo::on(&lab.stranger, 5353), Echo::on(&lab.edge, 8080));
    let gate = lab.open(&config(&lab)).unwrap();
    assert_eq!(lab.edge_reaches_udp(5353, ANSWER), [true; 2]);
    assert_eq!(lab.stranger_reaches_udp(8080, SILENCE), [false; 2]);
    assert_eq!(egress(&lab), Some(EgressHook::Clsact));
    assert!(gate.is_up());

    tc(&lab, &["filter", "del", "dev", "eth0", "egress"]);
    assert_eq!(lab.edge_reaches_udp(5353, SILENCE), [false; 2], "control: it was the filter that noted them");
    assert_eq!(egress(&lab), None);
    assert!(!gate.is_up(), "a living daemon sees that it is gone");
}

#[test]
fn kill_nine_leaves_the_filter_and_a_restart_takes_it_over() {
    let lab = Lab::new();
    let _asked = Echo::on(&lab.stranger, 5353);
    let mut holder = Holder::start(&lab, &["--clsact"]);
    let before = filters(&lab);
    assert_eq!(before.matches("handle 0x67617465").count(), 1, "{before}");
    holder.kill();
    assert_eq!(lab.edge_reaches_udp(5353, ANSWER), [true; 2], "nobody holds the gate");

    let _gate = lab.open(&config(&lab)).unwrap();
    assert_eq!(filters(&lab), before, "the same program on the same maps is not replaced");
    std::fs::remove_dir_all(lab.pin.path.join(format!("maps_{}", portcullis_common::layout::VERSION)))
        .unwrap();
    let _gate = lab.open(&config(&lab)).unwrap();
    let after = filters(&lab);
    assert_ne!(after, before, "on other maps it is another program");
    assert_eq!(after.matches("handle 0x67617465").count(), 1, "{after}");
    assert_eq!(lab.edge_reaches_udp(5353, ANSWER), [true; 2], "it notes in the new maps");
}

#[test]
fn the_filter_is_seen_after_every_capability_is_gone() {
    let lab = Lab::new();
    let mut holder = Holder::start(&lab, &["--clsact", "--drop-capabilities"]);
    assert!(holder.ask().starts_with("guarded "));
    tc(&lab, &["filter", "del", "dev", "eth0", "egress"]);
    assert!(holder.ask().starts_with("unguarded "));
}

#[test]
fn detach_removes_the_filter_and_no_other() {
    let lab = Lab::new();
    tc(&lab, &["qdisc", "add", "dev", "eth0", "clsact"]);
    let _same_priority = attach_other(&lab);
    add_other(&lab, "10", "all", "1");
    let others = filters(&lab);
    let mut holder = Holder::start(&lab, &["--clsact"]);
    holder.kill();
    assert_ne!(filters(&lab), others);
    assert_eq!(lab.detach(), ["interface eth0"]);
    assert_eq!(filters(&lab), others);
    assert_eq!(lab.detach(), Vec::<String>::new());
    assert!(!lab.status().is_up());
}

#[test]
fn a_place_that_others_have_is_left_to_them() {
    for (protocol, handle) in [("ip", "1"), ("all", "0x67617465")] {
        let lab = Lab::new();
        tc(&lab, &["qdisc", "add", "dev", "eth0", "clsact"]);
        add_other(&lab, "1", protocol, handle);
        let others = filters(&lab);
        let error = lab.open(&config(&lab)).err().unwrap();
        assert!(matches!(error, GateError::OtherFilter { .. }), "{error:?}");
        assert!(!lab.status().is_up(), "a start that fails guards nothing");
        lab.detach();
        assert_eq!(filters(&lab), others);
    }
}

/// A filter for the way out, on the older qdisc, would run on the way in.
#[test]
fn the_older_qdisc_is_left_alone_and_the_gate_refuses() {
    let lab = Lab::new();
    tc(&lab, &["qdisc", "add", "dev", "eth0", "ingress"]);
    let error = lab.open(&config(&lab)).err().unwrap();
    assert!(matches!(error, GateError::OtherQdisc { .. }), "{error:?}");
    assert!(tc(&lab, &["qdisc", "show", "dev", "eth0"]).contains("qdisc ingress"));
    assert!(!lab.status().is_up());
}

#[test]
fn a_start_in_the_other_way_leaves_one_program() {
    let lab = Lab::new();
    let _asked = Echo::on(&lab.stranger, 5353);
    drop(lab.open(&lab.config()).unwrap());
    let this_kernels = egress(&lab).unwrap();
    for hook in [EgressHook::Clsact, this_kernels] {
        let wanted = (hook != this_kernels).then_some(hook);
        let gate = lab.open(&GateConfig { egress: wanted, ..lab.config() }).unwrap();
        assert_eq!(egress(&lab), Some(hook));
        assert_eq!(filters(&lab).is_empty(), hook == EgressHook::Tcx);
        assert_eq!(lab.pin.path.join("links/eth0/egress").exists(), hook == EgressHook::Tcx);
        assert!(gate.is_up());
        assert_eq!(lab.edge_reaches_udp(5353, ANSWER), [true; 2]);
    }
}

fn config(lab: &Lab) -> GateConfig {
    GateConfig { egress: Some(EgressHook::Clsact), ..lab.config() }
}

fn egress(lab: &Lab) -> Option<EgressHook> {
    lab.status().interfaces.first().unwrap().egress
}

fn filters(lab: &Lab) -> String {
    tc(lab, &["filter", "show", "dev", "eth0", "egress"])
}

fn tc(lab: &Lab, arguments: &[&str]) -> String {
    run(lab.edge.command("tc").args(arguments)).unwrap()
}

/// A filter of somebody else's that matches nothing.
fn add_other(lab: &Lab, priority: &str, protocol: &str, handle: &str) {
    let program = ["bpf", "bytecode", "1,6 0 0 0"];
    let place = ["filter", "add", "dev", "eth0", "egress", "priority", priority, "protocol", protocol];
    tc(lab, &[&place[..], &["handle", handle], &program[..]].concat());
}

/// A BPF filter of somebody else's at our priority, and of the same name.
fn attach_other(lab: &Lab) -> Ebpf {
    lab.edge
        .enter(|| {
            let mut ebpf = EbpfLoader::new().load(gate::OBJECT).unwrap();
            let program: &mut SchedClassifier = ebpf.program_mut(gate::EGRESS).unwrap().try_into().unwrap();
            program.load().unwrap();
            let options = NlOptions { priority: 1, handle: TcHandle::from(7), ..NlOptions::default() };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options("eth0", TcAttachType::Egress, options).unwrap();
            ebpf
        })
        .unwrap()
}
