//! A line in the log for every frame that passes another NIC, with what stands in it. For people who look for an
//! error: it is slow, and [`super::open`] leaves it out unless the log shows this module's traces
//! (`--log info,backend_drv::nic::tracer=trace`).

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rdma_core::wire::{Announce, Header, Hello, Kind, Operation, Operations, flag};

use super::{Address, Nic, NicStats, Outgoing, Sink};

/// A NIC under observation.
#[derive(Debug)]
pub struct Tracer<N: ?Sized = dyn Nic> {
    /// The frame at hand.
    bytes: Vec<u8>,
    nic: Box<N>,
}

/// Whether the log shows what this module writes.
pub fn is_wanted() -> bool {
    tracing::enabled!(tracing::Level::TRACE)
}

impl<N: Nic + ?Sized> Tracer<N> {
    /// Observes `nic`.
    pub const fn new(nic: Box<N>) -> Self {
        Self {
            bytes: Vec::new(),
            nic,
        }
    }
}

impl<N: Nic + ?Sized> Nic for Tracer<N> {
    fn address(&self) -> Address {
        self.nic.address()
    }

    fn broadcast(&self) -> Option<Address> {
        self.nic.broadcast()
    }

    fn max_frame(&self) -> usize {
        self.nic.max_frame()
    }

    fn window(&self) -> usize {
        self.nic.window()
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        let sent = self.nic.send(batch)?;
        for frame in batch.iter().take(sent) {
            self.bytes.clear();
            frame.append_to(&mut self.bytes);
            tracing::trace!("-> {}: {}", frame.to, Decoded(&self.bytes));
        }
        Ok(sent)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        self.nic.receive(&mut |arrival, frame| {
            tracing::trace!("<- {}: {}", arrival.from, Decoded(frame));
            sink(arrival, frame);
        })
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.nic.readiness()
    }

    fn wants_write(&self) -> bool {
        self.nic.wants_write()
    }

    fn wake_at(&self) -> Option<Instant> {
        self.nic.wake_at()
    }

    fn stats(&self) -> NicStats {
        self.nic.stats()
    }
}

/// A frame in words, on one line.
#[derive(Debug)]
pub struct Decoded<'a>(pub &'a [u8]);

impl fmt::Display for Decoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, ", self.0.len())?;
        let (header, body) = match Header::parse(self.0) {
            Ok(parsed) => parsed,
            Err(error) => return write!(f, "not a frame: {error}"),
        };
        match header.kind {
            Kind::Hello => hello(body, f),
            Kind::Reset => write!(f, "RESET of session {:08x}", header.session),
            Kind::Announce => announce(body, f),
            Kind::Data => {
                write!(f, "DATA {:08x} #{}", header.session, header.number)?;
                if header.flags & flag::ACK_NOW != 0 {
                    f.write_str(" ack-now")?;
                }
                if header.flags & flag::SEALED != 0 {
                    let phase = u8::from(header.flags & flag::KEY_PHASE != 0);
                    return write!(f, ": sealed, key phase {phase}");
                }
                operations(body, f)
            }
        }
    }
}

fn hello(body: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match Hello::parse(body) {
        Ok((hello, _)) => write!(
            f,
            "HELLO{} session {:08x} echo {:08x} epoch {:x} capabilities {:x} max_frame {} window {}",
            if hello.answer { " answer" } else { "" },
            hello.session,
            hello.echo,
            hello.epoch,
            hello.capabilities,
            hello.max_frame,
            hello.window,
        ),
        Err(error) => write!(f, "bad HELLO: {error}"),
    }
}

fn announce(body: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match Announce::parse(body) {
        Ok(announce) => {
            write!(f, "ANNOUNCE epoch {:x}", announce.epoch)?;
            let mut addresses = announce.addresses.iter();
            addresses.try_for_each(|address| write!(f, " {address}"))
        }
        Err(error) => write!(f, "bad ANNOUNCE: {error}"),
    }
}

fn operations(body: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut before = ": ";
    for operation in Operations::new(body) {
        f.write_str(before)?;
        before = ", ";
        match operation {
            Ok(operation) => write_operation(&operation, f)?,
            Err(error) => write!(f, "bad operation: {error}")?,
        }
    }
    Ok(())
}

fn write_operation(operation: &Operation<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match operation {
        Operation::Ack(ack) => {
            write!(f, "ACK")?;
            for (first, last) in ack.ranges.iter() {
                write!(f, " {first}-{last}")?;
            }
            write!(f, " delay {} us", ack.delay_us)
        }
        Operation::Ping => f.write_str("PING"),
        Operation::Probe => f.write_str("PROBE"),
        Operation::Write(write) => write!(
            f,
            "WRITE {} key {:08x} {}+{}",
            write.endpoint,
            write.rkey,
            write.offset,
            write.payload.len()
        ),
        Operation::State(update) => {
            let state = &update.state;
            write!(
                f,
                "STATE {} #{} flags {:x} reason {} switch {} end {} left {}",
                update.endpoint,
                update.sequence,
                state.flags,
                state.reason,
                state.switch_at,
                state.end_at,
                state.left_at
            )
        }
        Operation::Consumed(consumed) => {
            write!(f, "CONSUMED {} {}", consumed.endpoint, consumed.head)
        }
        Operation::Control(control) => write!(
            f,
            "CONTROL #{} {} bytes",
            control.sequence,
            control.message.len()
        ),
        Operation::Close(reason) => write!(f, "CLOSE {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::loopback;
    use rdma_core::wire::{Consumed, Write, emit_ack};

    #[test]
    fn frames_are_told_in_words() {
        let header = Header {
            kind: Kind::Data,
            flags: flag::ACK_NOW,
            session: 0xabcd,
            number: 7,
        };
        let mut frame = header.emit().to_vec();
        emit_ack(12, [(3, 9), (1, 1)].into_iter(), &mut frame);
        Operation::Consumed(Consumed {
            endpoint: 2,
            rkey: 0x10,
            head: 5000,
        })
        .emit(&mut frame);
        Operation::Write(Write {
            endpoint: 4,
            rkey: 0x11,
            offset: 100,
            payload: &[0; 10],
        })
        .emit(&mut frame);
        assert_eq!(
            Decoded(&frame).to_string(),
            "102 bytes, DATA 0000abcd #7 ack-now: ACK 3-9 1-1 delay 12 us, CONSUMED 2 5000, WRITE 4 key 00000011 100+10"
        );
        frame.truncate(101);
        assert!(
            Decoded(&frame)
                .to_string()
                .ends_with("bad operation: 25 bytes are too short")
        );
        frame[0] = 9;
        assert_eq!(
            Decoded(&frame).to_string(),
            "101 bytes, not a frame: wire version 9 is not 1"
        );
    }

    #[test]
    fn what_passes_is_not_changed() {
        let (mut one, two) = loopback::pair(100).unwrap();
        let mut two = Tracer::new(Box::new(two));
        one.send(&[Outgoing::of_head(two.address(), &[1, 2, 3])])
            .unwrap();
        let mut got = Vec::new();
        two.receive(&mut |_, frame| got.extend_from_slice(frame))
            .unwrap();
        assert_eq!(got, [1, 2, 3]);
        two.send(&[Outgoing::of_head(one.address(), &[9])]).unwrap();
        one.receive(&mut |_, frame| got.extend_from_slice(frame))
            .unwrap();
        assert_eq!(got, [1, 2, 3, 9]);
    }
}
