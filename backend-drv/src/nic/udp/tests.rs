use super::*;
use crate::nic::Slice;
use crate::nic::veth::{ADDRESSES, Veth};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn frames(to: SocketAddr, sizes: &[usize]) -> Vec<Outgoing<'static>> {
    static BYTES: [u8; IP_MAX] = [0; IP_MAX];
    let frame = |size: &usize| Outgoing::of_head(Address::Udp(to), &BYTES[..*size]);
    sizes.iter().map(frame).collect()
}

#[test]
fn runs_are_of_one_size_and_address() {
    let (a, b) = ("10.0.0.1:1", "10.0.0.2:1");
    let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
    let run = |sizes: &[usize]| next_run(&frames(a, sizes), SEGMENTS_MAX);
    assert_eq!(run(&[]), (0, None));
    assert_eq!(run(&[100]), (1, None));
    assert_eq!(run(&[100, 100, 100]), (3, Some(100)));
    assert_eq!(run(&[100, 100, 60, 100]), (3, Some(100)));
    assert_eq!(run(&[100, 101]), (1, None));
    assert_eq!(run(&[0, 0]), (1, None));
    assert_eq!(run(&[50, 0]), (1, None));
    assert_eq!(run(&[8972; 10]), (7, Some(8972)));
    assert_eq!(run(&[1000; 100]), (64, Some(1000)));
    assert_eq!(run(&[65_507, 65_507]), (1, None));
    let mut mixed = frames(a, &[9, 9]);
    mixed.extend(frames(b, &[9]));
    assert_eq!(next_run(&mixed, SEGMENTS_MAX), (2, Some(9)));
    assert_eq!(next_run(&mixed, 1), (1, None));
}

/// What arrives until `bytes` bytes are there, or nothing more comes.
fn collect(nic: &mut Udp, bytes: usize) -> Vec<(Address, Vec<u8>)> {
    let mut got = Vec::new();
    let mut sum = 0;
    while sum < bytes {
        let mut fds = [PollFd::new(nic.readiness(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(2000u16)).unwrap() == 0 {
            break;
        }
        let mut sink = |arrival: Arrival, frame: &mut [u8]| {
            sum += frame.len();
            got.push((arrival.from, frame.to_vec()));
        };
        nic.receive(&mut sink).unwrap();
    }
    got
}

fn numbered(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![number; len];
    bytes[len / 2] = 0xff;
    bytes
}

/// Frames of many sizes with payload in two runs, with and without segmentation by the kernel.
fn exchange(one: &str, two: &str, segments: bool) {
    let mut near = Udp::open(one.parse().unwrap(), None).unwrap();
    let mut far = Udp::open(two.parse().unwrap(), None).unwrap();
    near.segments &= segments;
    let to = far.address();
    let sizes = [
        1200, 1200, 1200, 700, 700, 9000, 9000, 9000, 40_000, 40_000, 5, 64, 64,
    ];
    let bytes: Vec<Vec<u8>> = (0..).zip(sizes).map(|(n, len)| numbered(n, len)).collect();
    let batch: Vec<_> = bytes
        .iter()
        .map(|bytes| {
            let (head, rest) = bytes.split_at(bytes.len() / 3);
            let (first, second) = rest.split_at(rest.len() / 2);
            Outgoing {
                to,
                head,
                payload: [Slice::of_bytes(first), Slice::of_bytes(second)],
            }
        })
        .collect();
    assert_eq!(near.send(&batch).unwrap(), batch.len());
    assert!(!near.wants_write());
    let got = collect(&mut far, sizes.iter().sum());
    let whole: Vec<_> = got.iter().map(|(_, bytes)| bytes.clone()).collect();
    assert!(
        whole == bytes,
        "{:?}",
        whole.iter().map(Vec::len).collect::<Vec<_>>()
    );
    assert!(got.iter().all(|(from, _)| *from == near.address()));
    let (sent, received) = (near.stats(), far.stats());
    assert_eq!(sent.sent_frames, 13);
    assert_eq!(sent.sent_bytes, received.received_bytes);
    assert_eq!((sent.send_drops, received.malformed), (0, 0));
}

#[test]
fn frames_arrive_whole_over_ipv4() {
    exchange("127.0.0.1:0", "127.0.0.1:0", true);
    exchange("127.0.0.1:0", "127.0.0.1:0", false);
}

#[test]
fn frames_arrive_whole_over_ipv6() {
    if UdpSocket::bind("[::1]:0").is_err() {
        println!("skipped: no IPv6");
        return;
    }
    exchange("[::1]:0", "[::1]:0", true);
    exchange("[::1]:0", "[::1]:0", false);
}

#[test]
fn an_ipv6_socket_reaches_ipv4() {
    let Ok(mut near) = Udp::open("[::]:0".parse().unwrap(), None) else {
        println!("skipped: no IPv6");
        return;
    };
    let mut far = Udp::open("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let head = [3; 100];
    let batch = [Outgoing::of_head(far.address(), &head); 5];
    assert_eq!(near.send(&batch).unwrap(), 5);
    let got = collect(&mut far, 500);
    assert_eq!(got.len(), 5);
    let (from, _) = got[0];
    let answer = [Outgoing::of_head(from, &[4; 9])];
    assert_eq!(far.send(&answer).unwrap(), 1);
    assert_eq!(collect(&mut near, 9), [(far.address(), vec![4; 9])]);
}

#[test]
fn frames_cross_a_network_as_long_as_its_mtu_allows() {
    for mtu in [1500, 9000] {
        let Some(veth) = Veth::new(mtu) else {
            return;
        };
        let (mut near, mut far) = veth.open(|end| {
            let address = format!("{}:7447", ADDRESSES[end]);
            Udp::open(address.parse().unwrap(), None).unwrap()
        });
        assert_eq!(near.max_frame(), mtu - 28);
        let head = vec![7; mtu];
        let whole = Outgoing::of_head(far.address(), &head[..mtu - 28]);
        // While addresses are resolved, little is kept.
        assert_eq!(near.send(&[whole]).unwrap(), 1);
        assert_eq!(collect(&mut far, mtu - 28).len(), 1);
        assert_eq!(near.send(&[whole; 100]).unwrap(), 100);
        let got = collect(&mut far, 100 * (mtu - 28));
        assert_eq!(got.len(), 100);
        // One byte more is too long, alone and among others.
        let long = Outgoing::of_head(far.address(), &head[..mtu - 27]);
        assert_eq!(near.send(&[long, long, long, whole]).unwrap(), 4);
        assert_eq!(collect(&mut far, mtu - 28).len(), 1);
        assert_eq!(near.stats().send_drops, 3);
        // The interface's MTU shrinks: noticed by the first frame that is too long.
        assert!(veth.ip(0, "link set one mtu 1400"));
        assert_eq!(near.send(&[whole, whole]).unwrap(), 2);
        assert_eq!(near.max_frame(), 1400 - 28);
        assert_eq!(near.stats().send_drops, 5);
    }
}

#[test]
fn what_the_network_refuses_is_loss() {
    let mut near = Udp::open("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let mut far = Udp::open("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let long = vec![1; 65_508];
    let nobody = {
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
        Address::Udp(closed.local_addr().unwrap())
    };
    let batch = [
        Outgoing::of_head(far.address(), &long),
        Outgoing::of_head(nobody, &[0; 10]),
        Outgoing::of_head(Address::Mac([2; 6]), &[0; 10]),
        Outgoing::of_head(Address::Udp("[2001:db8::1]:1".parse().unwrap()), &[0; 10]),
        Outgoing::of_head(far.address(), &[7; 10]),
    ];
    assert_eq!(near.send(&batch).unwrap(), 5);
    assert_eq!(near.stats().send_drops, 3);
    assert_eq!(collect(&mut far, 10), [(near.address(), vec![7; 10])]);
    assert_eq!(near.receive(&mut |_, _| {}).unwrap(), 0);
}
