//! What every NIC keeps, whatever carries the frames and whatever is wrapped around it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::faults::{FaultSettings, Faults};
use super::pcap::Pcap;
use super::tracer::Tracer;
use super::veth::{ADDRESSES, NAMES, Veth};
use super::{Address, Driver, Nic, NicConfig, Outgoing, Slice, loopback, open};

/// Two NICs that reach each other, and what keeps their network alive.
struct Pair {
    one: Box<dyn Nic>,
    two: Box<dyn Nic>,
    network: Option<Veth>,
}

/// A config for one end of a veth pair.
fn config(udp: bool, end: usize) -> NicConfig {
    let driver = if udp {
        let bind = format!("{}:7447", ADDRESSES[end]).parse().unwrap();
        Driver::Udp { bind }
    } else {
        let interface = NAMES[end].to_owned();
        Driver::Ethernet { interface }
    };
    NicConfig::plain(driver)
}

/// Every kind of pair that this machine allows; `around` is put around each end.
fn pairs(around: fn(Box<dyn Nic>) -> Box<dyn Nic>) -> Vec<Pair> {
    let (one, two) = loopback::pair(1500).unwrap();
    let mut pairs = vec![Pair {
        one: around(Box::new(one)),
        two: around(Box::new(two)),
        network: None,
    }];
    for (udp, mtu) in [(true, 1500), (true, 9000), (false, 1500), (false, 9000)] {
        let Some(veth) = Veth::new(mtu) else {
            continue;
        };
        let (one, two) = veth.open(move |end| open(&config(udp, end)).unwrap());
        let mut pair = Pair {
            one: around(one),
            two: around(two),
            network: Some(veth),
        };
        // While the first frame is on its way, addresses are resolved, and little else is kept.
        pair.exchange(&[vec![1; 60]]);
        pairs.push(pair);
    }
    pairs
}

/// What arrives until `frames` frames are there, or nothing more comes.
fn collect(nic: &mut dyn Nic, frames: usize) -> Vec<(Address, Vec<u8>)> {
    let mut got = Vec::new();
    while got.len() < frames {
        let wake = nic.wake_at();
        let time = wake.map_or(Duration::from_secs(2), |at| {
            at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
        });
        let mut fds = [PollFd::new(nic.readiness(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap();
        if poll(&mut fds, timeout).unwrap() == 0 && wake.is_none() {
            break;
        }
        nic.receive(&mut |arrival, frame| got.push((arrival.from, frame.to_vec())))
            .unwrap();
    }
    got
}

impl Pair {
    /// Sends from one to two, in as many calls as it takes, and checks that all arrives as it was.
    fn exchange(&mut self, frames: &[Vec<u8>]) {
        let to = self.two.address();
        let outgoing = frames.iter().map(|bytes| {
            let (head, rest) = bytes.split_at(bytes.len().min(36));
            let (first, second) = rest.split_at(rest.len() / 3);
            let payload = [Slice::of_bytes(first), Slice::of_bytes(second)];
            Outgoing { to, head, payload }
        });
        let outgoing: Vec<_> = outgoing.collect();
        let mut rest = outgoing.as_slice();
        while !rest.is_empty() {
            let taken = self.one.send(rest).unwrap();
            assert_eq!(self.one.wants_write(), taken < rest.len());
            rest = &rest[taken..];
        }
        let got = collect(self.two.as_mut(), frames.len());
        let from = self.one.address();
        assert!(got.iter().all(|(address, _)| *address == from));
        let same = got.iter().map(|(_, bytes)| bytes).eq(frames);
        assert!(same, "{} of {} frames", got.len(), frames.len());
        assert_eq!(self.two.receive(&mut |_, _| panic!("no more")).unwrap(), 0);
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.one, &mut self.two);
    }
}

/// Frames of all sizes, and runs of equal ones.
fn frames(longest: usize) -> Vec<Vec<u8>> {
    let sizes = [
        46,
        46,
        100,
        700,
        700,
        700,
        longest,
        longest,
        longest,
        longest - 1,
        47,
    ];
    let sizes = sizes.into_iter().cycle().take(200);
    (0..=u8::MAX)
        .cycle()
        .zip(sizes)
        .map(|(number, len)| {
            let mut bytes = vec![number; len];
            bytes[len / 2] = !number;
            bytes
        })
        .collect()
}

fn keeps_its_word(mut pair: Pair) {
    assert_eq!(pair.one.send(&[]).unwrap(), 0);
    assert_eq!(pair.two.receive(&mut |_, _| panic!("nothing")).unwrap(), 0);
    for _ in 0..2 {
        let longest = pair.one.max_frame();
        assert!(pair.two.window() >= 100 * longest);
        pair.exchange(&frames(longest));
        // What is too long is lost, counted, and no hindrance.
        let drops = pair.one.stats().send_drops;
        let long = vec![0; longest + 1];
        let to = pair.two.address();
        let batch = [
            Outgoing::of_head(to, &long),
            Outgoing::of_head(to, &long[..64]),
        ];
        assert_eq!(pair.one.send(&batch).unwrap(), 2);
        assert_eq!(collect(pair.two.as_mut(), 1)[0].1.len(), 64);
        assert_eq!(pair.one.stats().send_drops, drops + 1);
        pair.turn();
    }
    let (one, two) = (pair.one.stats(), pair.two.stats());
    assert_eq!(one.sent_frames, two.received_frames);
    assert_eq!(one.sent_bytes, two.received_bytes);
    assert_eq!(two.sent_frames, one.received_frames);
    assert_eq!((one.malformed, one.receive_drops), (0, 0));
}

#[test]
fn drivers_keep_their_word() {
    pairs(|nic| nic).into_iter().for_each(keeps_its_word);
}

#[test]
fn middleware_keeps_the_word_of_what_it_wraps() {
    fn wrapped(nic: Box<dyn Nic>) -> Box<dyn Nic> {
        let settings = FaultSettings {
            delay: Duration::from_millis(1),
            ..FaultSettings::default()
        };
        let nic = Box::new(Faults::new(nic, settings));
        let nic = Pcap::new(nic, "/dev/null".as_ref()).unwrap();
        Box::new(Tracer::new(Box::new(nic)))
    }
    pairs(wrapped).into_iter().for_each(keeps_its_word);
}

#[test]
fn what_is_asked_for_is_wrapped_around() {
    let scratch = tempfile::tempdir().unwrap();
    let capture = scratch.path().join("frames.pcap");
    let config = |pcap: Option<PathBuf>, faults| NicConfig {
        driver: Driver::Udp {
            bind: "127.0.0.1:0".parse().unwrap(),
        },
        max_frame: Some(1000),
        faults,
        pcap,
    };
    let mut near = open(&config(Some(capture.clone()), None)).unwrap();
    let deaf = FaultSettings {
        drop: 1.0,
        ..FaultSettings::default()
    };
    let mut far = open(&config(None, Some(deaf))).unwrap();
    assert_eq!((near.max_frame(), far.max_frame()), (1000, 1000));
    near.send(&[Outgoing::of_head(far.address(), &[7; 60])])
        .unwrap();
    let mut fds = [PollFd::new(far.readiness(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)), Ok(1));
    assert_eq!(far.receive(&mut |_, _| panic!("deaf")).unwrap(), 1);
    drop(near);
    let written = std::fs::metadata(capture).unwrap().len();
    assert_eq!(written, 24 + 16 + 28 + 60);
}

#[test]
fn what_cannot_be_opened_says_where_and_why() {
    let fails =
        |config: &NicConfig| format!("{:#}", anyhow::Error::from(open(config).unwrap_err()));
    let ethernet = |interface: &str| {
        NicConfig::plain(Driver::Ethernet {
            interface: interface.to_owned(),
        })
    };
    let text = fails(&ethernet("no-such-nic"));
    assert!(
        text.starts_with("cannot use Ethernet frames on no-such-nic: "),
        "{text}"
    );
    if nix::unistd::Uid::effective().is_root() {
        assert!(text.contains("No such device"), "{text}");
        // Loopback is no Ethernet.
        assert!(fails(&ethernet("lo")).contains("on lo: "));
    }
    let bind = "192.0.2.1:7447".parse().unwrap();
    let text = fails(&NicConfig::plain(Driver::Udp { bind }));
    assert!(
        text.starts_with("cannot use UDP at 192.0.2.1:7447: "),
        "{text}"
    );
    let mut config = NicConfig::plain(Driver::Udp {
        bind: "127.0.0.1:0".parse().unwrap(),
    });
    config.pcap = Some("/no/such/place".into());
    assert!(fails(&config).starts_with("cannot write frames to /no/such/place: "));
}

/// When a frame came is told apart from when somebody looked, by the drivers that have it from the kernel.
#[test]
fn a_frame_has_come_when_the_kernel_got_it() {
    const PAUSE: Duration = Duration::from_millis(300);
    for mut pair in pairs(|nic| nic) {
        let to = pair.two.address();
        let before = Instant::now();
        assert_eq!(
            pair.one.send(&[Outgoing::of_head(to, &[5; 100])]).unwrap(),
            1
        );
        let mut fds = [PollFd::new(pair.two.readiness(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)).unwrap(), 1);
        let there = Instant::now();
        std::thread::sleep(PAUSE);
        let mut came = Vec::new();
        pair.two
            .receive(&mut |arrival, _| came.push(arrival.at))
            .unwrap();
        let kernel = pair.network.is_some();
        assert_eq!(came.len(), 1);
        assert_eq!(came[0].is_some(), kernel);
        if let Some(came) = came[0] {
            // The two clocks are not read at once.
            let slack = PAUSE / 2;
            assert!(came + slack > before, "{:?} early", before - came);
            assert!(came < there + slack, "{:?} late", came - there);
        }
    }
}
