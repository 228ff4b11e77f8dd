//! Which origins a connector dials: those of its node's latest epoch that the local list allows as well.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::super::wire::{Authority, OpenRequest};

/// An origin stream may overtake the list that names its origin, on another stream, by so much.
const EPOCH_TIMEOUT: Duration = Duration::from_secs(3);

/// What the node of one connection has configured.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) epoch: u64,
    pub(super) of_node: BTreeSet<Authority>,
}

/// Whether the origin may be dialled, once the list that the node had in mind has arrived.
pub(super) async fn permits(
    origins: &mut watch::Receiver<Origins>,
    allow: Option<&BTreeSet<Authority>>,
    request: &OpenRequest,
) -> bool {
    let arrived = timeout(EPOCH_TIMEOUT, origins.wait_for(|origins| origins.epoch >= request.epoch)).await;
    let of_node = matches!(arrived, Ok(Ok(origins)) if origins.of_node.contains(&request.origin));
    of_node && allow.is_none_or(|allow| allow.contains(&request.origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorities(list: &[&str]) -> BTreeSet<Authority> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn both_lists_must_name_the_origin() {
        let of_node = authorities(&["a:1", "b:1"]);
        let (_sender, mut origins) = watch::channel(Origins { epoch: 1, of_node });
        let request = |origin: &str| OpenRequest { epoch: 1, origin: origin.parse().unwrap() };
        let local = authorities(&["b:1", "c:1"]);
        for (origin, without_list, with_list) in
            [("a:1", true, false), ("b:1", true, true), ("c:1", false, false), ("b:2", false, false)]
        {
            assert_eq!(permits(&mut origins, None, &request(origin)).await, without_list, "{origin}");
            assert_eq!(permits(&mut origins, Some(&local), &request(origin)).await, with_list, "{origin}");
        }
        assert!(!permits(&mut origins, Some(&BTreeSet::new()), &request("a:1")).await);
    }

    #[tokio::test]
    async fn a_stream_waits_for_its_list_but_not_for_ever() {
        let (sender, mut origins) = watch::channel(Origins::default());
        let request = OpenRequest { epoch: 2, origin: "a:1".parse().unwrap() };
        assert!(!permits(&mut origins, None, &request).await);
        let waiting = permits(&mut origins, None, &request);
        let arrives = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            sender.send_replace(Origins { epoch: 2, of_node: authorities(&["a:1"]) });
        };
        assert!(tokio::join!(waiting, arrives).0);
    }
}
