//! A member of a region without a VM: it speaks to the region's server as QEMU would, and uses the memory and
//! the eventfds itself.
//!
//! An eventfd cannot signal another one, so a thread carries what rings from our vectors to what is bound to
//! them.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::fstat;
use rustix::io::{Errno, read, write};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recvmsg, socket_with,
};

use super::{Device, DeviceError, failed};

/// How long a server may take to greet.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Member {
    id: u16,
    memory: Arc<OwnedFd>,
    bytes: u64,
    /// For [`Device::news`].
    socket: Arc<OwnedFd>,
    line: Mutex<Line>,
    vectors: Arc<Vectors>,
    carrier: Option<JoinHandle<()>>,
}

/// What the server has said.
#[derive(Debug)]
struct Line {
    socket: Arc<OwnedFd>,
    others: HashMap<u16, Vec<OwnedFd>>,
    open: bool,
}

/// Our own vectors.
#[derive(Debug)]
struct Vectors {
    own: Vec<OwnedFd>,
    bound: Mutex<Bound>,
    /// Rung when `bound` has changed.
    changed: OwnedFd,
}

#[derive(Debug)]
struct Bound {
    bells: Vec<Option<OwnedFd>>,
    over: bool,
}

impl Member {
    /// Joins the region whose server listens at `path`.
    pub(super) fn connect(path: &Path) -> Result<Self, DeviceError> {
        let doing = || failed::<Errno>(format!("joining the region at {}", path.display()));
        let flags = SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(doing())?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(doing())?).map_err(doing())?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).map_err(doing())?;
        Self::greeted(socket)
    }

    fn greeted(socket: OwnedFd) -> Result<Self, DeviceError> {
        let socket = Arc::new(socket);
        let heard = || {
            receive(&socket, RecvFlags::empty())
                .map_err(failed::<Errno>("waiting for the server of the region"))?
                .ok_or(DeviceError::Protocol("it has closed the connection"))
        };
        if !matches!(heard()?, (0, None)) {
            return Err(DeviceError::Protocol("it speaks another version"));
        }
        let (id, None) = heard()? else {
            return Err(DeviceError::Protocol("it gave no id"));
        };
        let id = u16::try_from(id).map_err(|_| DeviceError::Protocol("it gave no id"))?;
        let (-1, Some(memory)) = heard()? else {
            return Err(DeviceError::Protocol("it gave no memory"));
        };
        let size = fstat(&memory).map_err(failed::<Errno>("asking for the size of the memory"))?;
        // All members have as many vectors, and our own are told last.
        let mut others: HashMap<u16, Vec<OwnedFd>> = HashMap::new();
        let mut own = Vec::new();
        let mut all = None;
        while all != Some(own.len()) {
            let (number, bell) = heard()?;
            let number = u16::try_from(number).ok();
            let (Some(number), Some(bell)) = (number, bell) else {
                return Err(DeviceError::Protocol("it greeted with something else"));
            };
            if number == id {
                own.push(bell);
                all = all.or_else(|| others.values().map(Vec::len).max());
            } else {
                others.entry(number).or_default().push(bell);
            }
            if own.len() > others.values().map(Vec::len).max().unwrap_or(0) {
                return Err(DeviceError::Protocol("it is not a member itself"));
            }
        }
        let vectors = Arc::new(Vectors {
            bound: Mutex::new(Bound {
                bells: own.iter().map(|_| None).collect(),
                over: false,
            }),
            own,
            changed: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(failed::<Errno>("making an eventfd"))?,
        });
        let carried = Arc::clone(&vectors);
        let carrier = std::thread::Builder::new()
            .name("doorbells".into())
            .spawn(move || carried.carry())
            .map_err(failed::<io::Error>("starting a thread"))?;
        Ok(Self {
            id,
            memory: Arc::new(memory),
            bytes: u64::try_from(size.st_size).unwrap_or(0),
            line: Mutex::new(Line {
                socket: Arc::clone(&socket),
                others,
                open: true,
            }),
            socket,
            vectors,
            carrier: Some(carrier),
        })
    }

    fn with_bell<T>(
        &self,
        target: u16,
        vector: u16,
        what: impl FnOnce(&OwnedFd) -> T,
    ) -> Option<T> {
        let line = self.line();
        let bells = match target {
            _ if target == self.id => Some(&self.vectors.own),
            _ => line.others.get(&target),
        };
        bells?.get(usize::from(vector)).map(what)
    }

    /// What the server has said so far.
    fn line(&self) -> MutexGuard<'_, Line> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.listen();
        line
    }
}

impl Device for Member {
    fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    fn id(&self) -> u16 {
        self.id
    }

    fn vectors(&self) -> u16 {
        u16::try_from(self.vectors.own.len()).unwrap_or(u16::MAX)
    }

    fn register(&self) -> Option<&Arc<OwnedFd>> {
        None
    }

    fn ring(&self, target: u16, vector: u16) {
        self.with_bell(target, vector, |bell| strike(bell));
    }

    fn bell(&self, target: u16, vector: u16) -> Option<OwnedFd> {
        let copy = |bell: &OwnedFd| bell.try_clone().ok();
        self.with_bell(target, vector, copy)?
    }

    fn bind(&self, vector: u16, bell: BorrowedFd<'_>) -> io::Result<()> {
        let bell = bell.try_clone_to_owned()?;
        let mut bound = self.vectors.bound();
        let place = bound.bells.get_mut(usize::from(vector));
        *place.ok_or(io::ErrorKind::InvalidInput)? = Some(bell);
        strike(&self.vectors.changed);
        Ok(())
    }

    fn is_present(&self) -> bool {
        self.line().open
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.vectors.bound().over = true;
        strike(&self.vectors.changed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

impl Line {
    fn listen(&mut self) {
        while self.open {
            match receive(&self.socket, RecvFlags::DONTWAIT) {
                Ok(Some((number, bell))) => self.hear(number, bell),
                Ok(None) => self.open = false,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.open = false,
            }
        }
    }

    /// A member joins, by an eventfd for each vector, or leaves.
    fn hear(&mut self, number: i64, bell: Option<OwnedFd>) {
        let Ok(id) = u16::try_from(number) else {
            return;
        };
        match bell {
            Some(bell) => self.others.entry(id).or_default().push(bell),
            None => {
                self.others.remove(&id);
            }
        }
    }
}

impl Vectors {
    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: what rings is carried on. Vectors to which nothing is bound keep it.
    fn carry(&self) {
        loop {
            let mut which = Vec::new();
            {
                let bound = self.bound();
                if bound.over {
                    return;
                }
                which.extend((0..self.own.len()).filter(|&vector| {
                    let bell = bound.bells.get(vector);
                    bell.is_some_and(Option::is_some)
                }));
            }
            let own = which.iter().filter_map(|&vector| self.own.get(vector));
            let mut entries: Vec<_> = core::iter::once(&self.changed)
                .chain(own)
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            if poll(&mut entries, None).is_err() {
                continue;
            }
            let rang: Vec<_> = entries
                .iter()
                .map(|entry| !entry.revents().is_empty())
                .collect();
            if rang.first() == Some(&true) {
                calm(&self.changed);
            }
            let bound = self.bound();
            for (&vector, _) in which
                .iter()
                .zip(rang.iter().skip(1))
                .filter(|(_, rang)| **rang)
            {
                if let (Some(own), Some(Some(bell))) =
                    (self.own.get(vector), bound.bells.get(vector))
                {
                    calm(own);
                    strike(bell);
                }
            }
        }
    }
}

/// One message: its number and its descriptor. `None` at the end.
fn receive(socket: impl AsFd, flags: RecvFlags) -> Result<Option<(i64, Option<OwnedFd>)>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 8];
    let room = &mut [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, room, &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fd = rights.last().or(fd);
        }
    }
    match got.bytes {
        0 => Ok(None),
        8 => Ok(Some((i64::from_le_bytes(bytes), fd))),
        _ => Err(Errno::PROTO),
    }
}

/// Rings. A bell that is full is ringing already, and its other holders may have made it blocking.
fn strike(bell: impl AsFd) {
    let mut entry = [PollFd::new(&bell, PollFlags::OUT)];
    if poll(&mut entry, Some(&Timespec::default())) == Ok(1) {
        let _ = write(&bell, &1u64.to_ne_bytes());
    }
}

/// Takes back what rang.
fn calm(bell: impl AsFd) {
    let _ = read(bell, &mut [0u8; 8]);
}
