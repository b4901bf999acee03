//! Authentication and encryption with a pre-shared key.
//!
//! HELLOs carry an HMAC-SHA-256 tag. DATA frames are sealed with AES-256-GCM: the header is the
//! associated data, the frame number the nonce. Each direction of each session has a key of its own,
//! derived from the pre-shared key and from what both sides drew at random. A key is replaced by one
//! derived from it; a bit in the header says which of two successive keys sealed a frame.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

use crate::wire::{HEADER_BYTES, HELLO_BYTES, Header, HelloTag, TAG_BYTES, flag};

type HmacSha256 = Hmac<Sha256>;

/// A frame that this key did not seal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Forged;

/// A pre-shared key.
#[derive(Clone)]
pub struct Psk {
    hello: [u8; 32],
    data: [u8; 32],
}

impl Psk {
    /// From secret bytes, as they stand in a key file. Fewer than [`Self::SECRET_MIN`] are refused.
    pub fn new(secret: &[u8]) -> Option<Self> {
        if secret.len() < Self::SECRET_MIN {
            return None;
        }
        let (root, _) = Hkdf::<Sha256>::extract(Some(b"viaduct link 1"), secret);
        let root = root.into();
        Some(Self {
            hello: expand(&root, &[b"hello"]),
            data: expand(&root, &[b"data"]),
        })
    }

    /// Least length of a secret: 128 bits.
    pub const SECRET_MIN: usize = 16;

    /// Writes the tag of a HELLO.
    pub(super) fn sign(&self, hello: &mut [u8; HELLO_BYTES]) {
        let tag = self.mac(hello).finalize().into_bytes();
        hello[HELLO_BYTES - TAG_BYTES..].copy_from_slice(&tag[..TAG_BYTES]);
    }

    /// Whether a HELLO was signed with this key.
    pub(super) fn signed(&self, hello: &[u8], tag: &HelloTag) -> bool {
        let Some(hello) = hello.first_chunk::<HELLO_BYTES>() else {
            return false;
        };
        self.mac(hello).verify_truncated_left(tag).is_ok()
    }

    fn mac(&self, hello: &[u8; HELLO_BYTES]) -> HmacSha256 {
        keyed(&self.hello, &[&hello[..HELLO_BYTES - TAG_BYTES]])
    }
}

impl core::fmt::Debug for Psk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Psk")
    }
}

impl Drop for Psk {
    fn drop(&mut self) {
        self.hello.zeroize();
        self.data.zeroize();
    }
}

/// What one side drew for one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    pub(super) session: u32,
    pub(super) nonce: [u8; 16],
}

impl Credentials {
    /// The `count`-th pair that comes from `seed`.
    pub(super) fn draw(seed: &[u8; 32], count: u64) -> Self {
        let mac = keyed(seed, &[b"session", &count.to_be_bytes()]);
        let bytes: [u8; 32] = mac.finalize().into_bytes().into();
        let [s0, s1, s2, s3, ..] = bytes;
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[16..]);
        Self {
            session: u32::from_be_bytes([s0, s1, s2, s3]).max(1),
            nonce,
        }
    }
}

/// One generation of the key of one direction.
struct Key {
    secret: [u8; 32],
    cipher: Aes256Gcm,
    iv: [u8; 12],
}

impl Drop for Key {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.iv.zeroize();
    }
}

impl Key {
    fn new(secret: [u8; 32]) -> Self {
        Self {
            cipher: Aes256Gcm::new(&expand(&secret, &[b"key"]).into()),
            iv: expand(&secret, &[b"iv"]),
            secret,
        }
    }

    fn next(&self) -> Self {
        Self::new(expand(&self.secret, &[b"next"]))
    }

    fn nonce(&self, number: u64) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    fn open(&self, number: u64, frame: &mut [u8]) -> Result<(), Forged> {
        let Some((head, body)) = frame.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(Forged);
        };
        let Some((body, tag)) = body.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(Forged);
        };
        // The tag is compared before anything is decrypted: a forged frame stays as it was.
        self.cipher
            .decrypt_inout_detached(
                &self.nonce(number).into(),
                head,
                body.into(),
                (&*tag).into(),
            )
            .map_err(|_| Forged)
    }
}

/// The keys of a session.
pub(super) struct Keys {
    send: Key,
    send_before: Option<Key>,
    send_phase: bool,
    /// First number that the present key seals.
    send_first: u64,
    receive: Key,
    receive_before: Option<Key>,
    receive_next: Key,
    receive_phase: bool,
    /// Least number that the present key opened.
    receive_first: u64,
}

impl Keys {
    pub(super) fn new(psk: &Psk, own: &Credentials, far: &Credentials) -> Self {
        let secret = |from: &Credentials, to: &Credentials| {
            expand(
                &psk.data,
                &[
                    &from.session.to_be_bytes(),
                    &from.nonce,
                    &to.session.to_be_bytes(),
                    &to.nonce,
                ],
            )
        };
        let receive = Key::new(secret(far, own));
        Self {
            send: Key::new(secret(own, far)),
            send_before: None,
            send_phase: false,
            send_first: 0,
            receive_next: receive.next(),
            receive,
            receive_before: None,
            receive_phase: false,
            receive_first: u64::MAX,
        }
    }

    /// Bits for the header of the next frame.
    #[inline]
    pub(super) const fn flags(&self) -> u8 {
        flag::SEALED | if self.send_phase { flag::KEY_PHASE } else { 0 }
    }

    /// Whether the key has sealed enough frames, the next of which is `number`.
    #[inline]
    pub(super) const fn is_worn(&self, number: u64) -> bool {
        number.wrapping_sub(self.send_first) >= Self::FRAMES_PER_KEY
    }

    /// Replaces the key from frame `number` on, unless the far end may still be waiting for the last
    /// replacement: `acknowledged` is the largest number that it has acknowledged.
    pub(super) fn rotate(&mut self, number: u64, acknowledged: Option<u64>) -> bool {
        if acknowledged.is_none_or(|largest| largest < self.send_first) {
            return false;
        }
        let next = self.send.next();
        self.send_before = Some(core::mem::replace(&mut self.send, next));
        self.send_phase = !self.send_phase;
        self.send_first = number;
        true
    }

    /// Seals a frame in place: a header, what is secret, and room for the tag. False: this is no frame.
    pub(super) fn seal(&self, frame: &mut [u8]) -> bool {
        let Some((head, body)) = frame.split_first_chunk_mut::<HEADER_BYTES>() else {
            return false;
        };
        let Some((body, tag)) = body.split_last_chunk_mut::<TAG_BYTES>() else {
            return false;
        };
        let Ok((header, _)) = Header::parse(head) else {
            return false;
        };
        let phase = header.flags & flag::KEY_PHASE != 0;
        let key = if phase == self.send_phase {
            &self.send
        } else if let Some(before) = &self.send_before {
            before
        } else {
            return false;
        };
        let nonce = key.nonce(header.number).into();
        match key.cipher.encrypt_inout_detached(&nonce, head, body.into()) {
            Ok(made) => {
                tag.copy_from_slice(&made);
                true
            }
            Err(_) => false,
        }
    }

    /// Opens a frame in place. A forged one changes nothing.
    pub(super) fn open(&mut self, header: &Header, frame: &mut [u8]) -> Result<(), Forged> {
        let phase = header.flags & flag::KEY_PHASE != 0;
        let number = header.number;
        if phase == self.receive_phase {
            self.receive.open(number, frame)?;
            self.receive_first = self.receive_first.min(number);
            return Ok(());
        }
        if number < self.receive_first {
            let before = self.receive_before.as_ref().ok_or(Forged)?;
            return before.open(number, frame);
        }
        self.receive_next.open(number, frame)?;
        let next = self.receive_next.next();
        let now = core::mem::replace(&mut self.receive_next, next);
        self.receive_before = Some(core::mem::replace(&mut self.receive, now));
        self.receive_phase = phase;
        self.receive_first = number;
        Ok(())
    }

    /// Far below what AES-GCM bears, and often enough to be exercised.
    pub(super) const FRAMES_PER_KEY: u64 = 1 << 22;
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Keys")
    }
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> HmacSha256 {
    // HMAC pads a short key with zeros; a key of a whole block cannot fail.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = HmacSha256::new((&block).into());
    for part in parts {
        mac.update(part);
    }
    mac
}

fn expand<const N: usize>(secret: &[u8; 32], info: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    // Both fail only for lengths that do not occur here.
    let done = Hkdf::<Sha256>::from_prk(secret)
        .is_ok_and(|root| root.expand_multi_info(info, &mut out).is_ok());
    debug_assert!(done);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    fn pair() -> (Keys, Keys) {
        let psk = Psk::new(b"correct horse battery staple").unwrap();
        let (a, b) = (
            Credentials::draw(&[1; 32], 0),
            Credentials::draw(&[2; 32], 0),
        );
        (Keys::new(&psk, &a, &b), Keys::new(&psk, &b, &a))
    }

    fn sealed(keys: &Keys, number: u64) -> (Header, Vec<u8>) {
        let header = Header {
            kind: Kind::Data,
            flags: keys.flags(),
            session: 5,
            number,
        };
        let mut frame = header.emit().to_vec();
        frame.extend_from_slice(b"secret");
        frame.extend_from_slice(&[0; TAG_BYTES]);
        assert!(keys.seal(&mut frame));
        (header, frame)
    }

    #[test]
    fn short_secrets_are_refused() {
        assert!(Psk::new(&[1; 15]).is_none());
        assert!(Psk::new(&[1; 16]).is_some());
    }

    #[test]
    fn credentials_differ() {
        let drawn: Vec<_> = (0..50).map(|n| Credentials::draw(&[7; 32], n)).collect();
        for (index, one) in drawn.iter().enumerate() {
            assert!(one.session != 0);
            assert!(drawn[..index].iter().all(|other| other.nonce != one.nonce));
        }
    }

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let (a, mut b) = pair();
        let (header, frame) = sealed(&a, 77);
        assert!(!frame.windows(6).any(|window| window == b"secret"));
        for bit in 0..frame.len() * 8 {
            let mut forged = frame.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let before = forged.clone();
            let header = Header::parse(&forged).map_or(header, |(header, _)| header);
            assert_eq!(b.open(&header, &mut forged), Err(Forged), "bit {bit}");
            assert_eq!(forged, before);
        }
        let mut good = frame.clone();
        assert_eq!(b.open(&header, &mut good), Ok(()));
        assert_eq!(&good[16..22], b"secret");
        let (mut a, _) = pair();
        assert_eq!(
            a.open(&header, &mut frame.clone()),
            Err(Forged),
            "own frame"
        );
    }

    #[test]
    fn follows_a_rotation_and_knows_the_key_before() {
        let (mut a, mut b) = pair();
        let (late_header, mut late) = sealed(&a, 9);
        let (header, mut frame) = sealed(&a, 8);
        assert_eq!(b.open(&header, &mut frame), Ok(()));
        assert!(!a.rotate(8, None), "nothing has arrived yet");
        assert!(a.rotate(10, Some(8)));
        assert!(!a.rotate(11, Some(9)), "the far end may not know yet");
        let (header, mut frame) = sealed(&a, 10);
        assert_eq!(b.open(&header, &mut frame), Ok(()));
        assert_eq!(b.open(&late_header, &mut late), Ok(()), "reordered");
        assert!(a.rotate(12, Some(10)));
        let (header, mut frame) = sealed(&a, 12);
        assert_eq!(b.open(&header, &mut frame), Ok(()));
        assert_eq!(&frame[16..22], b"secret");
    }

    #[test]
    fn a_hello_is_signed_as_a_whole() {
        let psk = Psk::new(&[3; 32]).unwrap();
        let mut hello = [9; HELLO_BYTES];
        psk.sign(&mut hello);
        let tag: HelloTag = *hello.last_chunk().unwrap();
        assert!(psk.signed(&hello, &tag));
        assert!(!Psk::new(&[4; 32]).unwrap().signed(&hello, &tag));
        for at in 0..HELLO_BYTES - TAG_BYTES {
            let mut forged = hello;
            forged[at] ^= 0x10;
            assert!(!psk.signed(&forged, &tag), "byte {at}");
        }
        assert!(!psk.signed(&hello[1..], &tag));
    }
}
