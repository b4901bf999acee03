//! A link whose far end is hostile: a list of frames, timeouts and calls.

use rdma_core::link::{
    Config, DomainId, Endpoint, FarEnd, Head, Link, Memory, Positions, Psk, Refusal, Schedule,
    State, Time,
};
use rdma_core::wire::{
    Consumed, Control, Header, Hello, Kind, Operation, StateUpdate, Write, emit_ack,
};

/// Most steps of one run.
const STEPS_MAX: usize = 200;

/// Bytes of the ring of each stream.
const CAPACITY: u64 = 4096;

/// Checks what the link promises of every place.
struct Checked {
    edges: [u64; 4],
    heads: [u64; 4],
}

impl Memory for Checked {
    fn place(
        &mut self,
        endpoint: Endpoint,
        rkey: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let at = endpoint.0 as usize;
        assert_eq!(rkey, 70 + endpoint.0);
        assert!(!payload.is_empty() && offset >= self.edges[at]);
        assert!(offset + payload.len() as u64 <= self.heads[at] + CAPACITY);
        match offset % 7 {
            0 => Err(Refusal::Busy),
            1 => Err(Refusal::Range),
            _ => Ok(()),
        }
    }
}

/// A link and a far end that says what the data says.
struct Run {
    link: Link,
    schedule: Schedule,
    head: Head,
    memory: Checked,
    now: Time,
    /// What the link told of itself, and what the far end drew.
    told: Option<Hello>,
    session: u32,
    number: u64,
}

/// Reads `data` as steps and runs them. The first byte says whether there is a key.
pub fn link(data: &[u8]) {
    let Some((&first, mut data)) = data.split_first() else {
        return;
    };
    let mut config = Config::new([3; 32], [1; 16], 9);
    if first & 1 != 0 {
        config.key = Psk::new(b"sixteen bytes or more");
    }
    if first & 2 != 0 {
        config.max_frame = 9000;
    }
    let mut run = Run {
        link: Link::new(config, Time(1)),
        schedule: Schedule::new(),
        head: Head::new(),
        memory: Checked {
            edges: [0; 4],
            heads: [0; 4],
        },
        now: Time(1),
        told: None,
        session: 5,
        number: 0,
    };
    for _ in 0..STEPS_MAX {
        if run.step(&mut data).is_none() {
            return;
        }
        run.settle();
    }
}

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*taken)
}

fn number(data: &mut &[u8]) -> Option<u64> {
    let [kind] = take(data)?;
    Some(match kind {
        255 => u64::from_le_bytes(take(data)?),
        254 => u64::MAX,
        253 => u64::from(u16::from_le_bytes(take(data)?)),
        small => u64::from(small),
    })
}

impl Run {
    fn step(&mut self, data: &mut &[u8]) -> Option<()> {
        let [what] = take(data)?;
        let [endpoint] = take(data)?;
        let endpoint = u32::from(endpoint % 5);
        match what % 16 {
            0 => self.say_hello(endpoint),
            1 => self.open(endpoint, number(data)?),
            2 => {
                self.link.close(Endpoint(endpoint));
            }
            3 => self.link.produced(Endpoint(endpoint), number(data)?),
            4 => self.consume(endpoint, number(data)?),
            5 => self.link.set_state(
                Endpoint(endpoint),
                State {
                    flags: u32::from(endpoint % 2 == 0),
                    ..State::default()
                },
            ),
            6 => {
                // Full is an answer.
                let _ = self.link.send_control(&[7; 100]);
            }
            7 => self.now = self.now.plus(number(data)?.min(1 << 40) << 10),
            8 => {
                let length = usize::from(take::<1>(data)?[0]).min(data.len());
                let (frame, rest) = data.split_at(length);
                *data = rest;
                self.receive(&mut frame.to_vec());
            }
            9 => self.link.shut_down(endpoint),
            10 => self.link.connect(self.now),
            11 => self.link.set_max_frame(1200 + endpoint as usize * 2000),
            _ => self.say(endpoint, data)?,
        }
        Some(())
    }

    /// A HELLO; the link's own session is echoed if `what` says so.
    fn say_hello(&mut self, what: u32) {
        let Some(told) = self.told else { return };
        if what == 0 {
            self.session += 1;
            self.number = 0;
        }
        let echoes = what != 1;
        let hello = Hello {
            session: self.session,
            echo: if echoes { told.session } else { 0 },
            backend: [2; 16],
            epoch: u64::from(what == 2),
            capabilities: 0,
            max_frame: 9000,
            idle_timeout_ms: 1000,
            window: 1 << 20,
            answer: what == 3,
            live: what == 4,
            nonce: [4; 16],
            echo_nonce: if echoes { told.nonce } else { [0; 16] },
        };
        self.receive(&mut hello.emit());
    }

    fn open(&mut self, endpoint: u32, at: u64) {
        if endpoint >= 4 {
            self.link.expect(Endpoint(endpoint));
            return;
        }
        let at = at.min(1 << 60);
        self.link.close(Endpoint(endpoint));
        self.link.open(
            Endpoint(endpoint),
            FarEnd {
                endpoint: 90,
                rkey: 91,
                capacity: CAPACITY,
            },
            70 + endpoint,
            DomainId(endpoint % 2),
            Positions {
                sent: at,
                far_consumed: at,
                received: at,
                consumed: at,
            },
        );
        self.memory.edges[endpoint as usize] = at;
        self.memory.heads[endpoint as usize] = at;
    }

    fn consume(&mut self, endpoint: u32, count: u64) {
        if let (Some(edge), Some(head)) = (
            self.memory.edges.get(endpoint as usize),
            self.memory.heads.get_mut(endpoint as usize),
        ) {
            *head = head.saturating_add(count).min(*edge);
            self.link.consumed(Endpoint(endpoint), *head);
        }
    }

    /// A frame of the session, with some operations.
    fn say(&mut self, endpoint: u32, data: &mut &[u8]) -> Option<()> {
        let session = self.told.map_or(0, |told| told.session);
        self.number = self.number.wrapping_add(number(data)?);
        let header = Header {
            kind: Kind::Data,
            flags: 0,
            session,
            number: self.number,
        };
        let mut frame = header.emit().to_vec();
        let [count] = take(data)?;
        for _ in 0..count % 4 {
            let [what] = take(data)?;
            let operation = match what % 8 {
                0 => Operation::Ping,
                1 => Operation::Probe,
                2 => Operation::Consumed(Consumed {
                    endpoint,
                    rkey: 70 + endpoint,
                    head: number(data)?,
                }),
                3 => Operation::State(StateUpdate {
                    endpoint,
                    rkey: 70 + endpoint,
                    sequence: u32::from(take::<1>(data)?[0]),
                    state: State::default(),
                }),
                4 => Operation::Control(Control {
                    sequence: u32::from(take::<1>(data)?[0]),
                    message: b"message",
                }),
                5 => Operation::Close(1),
                6 => {
                    let (last, count) = (number(data)? % (1 << 60), number(data)?);
                    let first = last.saturating_sub(count);
                    let more = first.saturating_sub(3);
                    let ranges = [(first, last), (more, more)];
                    let ranges = &ranges[..if first > 3 { 2 } else { 1 }];
                    emit_ack(5, ranges.iter().copied(), &mut frame);
                    continue;
                }
                _ => {
                    let offset = number(data)?;
                    let length = 1 + usize::try_from(number(data)? % 6000).unwrap_or(0);
                    Operation::Write(Write {
                        endpoint,
                        rkey: 70 + endpoint,
                        offset: offset.min(1 << 62),
                        payload: &vec![1; length],
                    })
                    .emit(&mut frame);
                    continue;
                }
            };
            operation.emit(&mut frame);
        }
        self.receive(&mut frame);
        Some(())
    }

    fn receive(&mut self, frame: &mut [u8]) {
        if let Err(dropped) =
            self.link
                .handle_frame(self.now, Some(self.now), frame, &mut self.memory)
        {
            assert!(!dropped.to_string().is_empty());
        }
    }

    /// Takes everything from the link, as an engine does.
    fn settle(&mut self) {
        while let Some(event) = self.link.poll_event() {
            use rdma_core::link::Event;
            match event {
                Event::Arrived { endpoint, edge } => {
                    let known = &mut self.memory.edges[endpoint.0 as usize];
                    assert!(edge > *known);
                    *known = edge;
                }
                Event::Consumed { endpoint, .. } | Event::State { endpoint, .. } => {
                    assert!(endpoint.0 < 4);
                }
                _ => {}
            }
        }
        // Silence is told, then ends the session, then HELLOs are due.
        for round in 0.. {
            if self.link.poll_timeout().is_none_or(|at| at > self.now) {
                break;
            }
            assert!(round < 4, "a timeout that does not pass");
            self.link.handle_timeout(self.now);
        }
        for _ in 0..500 {
            let Some(frame) = self
                .link
                .poll_transmit(self.now, &mut self.schedule, &mut self.head)
            else {
                return;
            };
            let head = self.head.as_bytes();
            let payload = frame.payload.map_or(0, |payload| payload.len);
            let tag = if frame.sealed { 16 } else { 0 };
            assert_eq!(
                (frame.head_len, frame.size),
                (head.len(), head.len() + payload + tag)
            );
            assert!(frame.size <= 9300);
            let (header, body) = Header::parse(head).expect("the link writes frames");
            if header.kind == Kind::Hello {
                self.told = Hello::parse(body).ok().map(|(hello, _)| hello);
            }
        }
        panic!("the link never stops sending");
    }
}
