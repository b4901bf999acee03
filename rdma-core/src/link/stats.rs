//! What a link has counted.

/// Counters since the link was made, and what is known of the path now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Sessions begun.
    pub sessions: u64,
    /// Frames sent, and their bytes.
    pub frames_sent: u64,
    /// See [`Self::frames_sent`].
    pub bytes_sent: u64,
    /// Bytes of streams among them; the second time they are sent they count as `bytes_again` too.
    pub stream_bytes_sent: u64,
    /// See [`Self::stream_bytes_sent`].
    pub bytes_again: u64,
    /// Frames taken, and their bytes.
    pub frames_received: u64,
    /// See [`Self::frames_received`].
    pub bytes_received: u64,
    /// Bytes of streams put in place.
    pub stream_bytes_received: u64,
    /// Acknowledgements sent and received.
    pub acks_sent: u64,
    /// See [`Self::acks_sent`].
    pub acks_received: u64,
    /// Frames taken for lost.
    pub frames_lost: u64,
    /// Frames that arrived after they were taken for lost.
    pub frames_found: u64,
    /// How often the tail was asked for again.
    pub tail_probes: u64,
    /// How often the path was silent for so long that the window started anew.
    pub collapses: u64,
    /// How often the window was cut for congestion.
    pub cuts: u64,
    /// How often the path was found to carry less than before.
    pub path_shrunk: u64,
    /// Frames dropped: not a frame, or with an operation out of its range.
    pub malformed: u64,
    /// Frames dropped: not made with the key, or not sealed.
    pub forged: u64,
    /// Frames dropped: here before, or too old to know.
    pub replayed: u64,
    /// Frames dropped: for a session that is not there.
    pub strange: u64,
    /// Frames that must come again: stream not open yet, or no room.
    pub postponed: u64,
    /// Writes and other operations dropped: key unknown or revoked, or outside the memory.
    pub refused: u64,
    /// Writes and other operations dropped: the stream is closed here.
    pub for_closed: u64,
    /// Operations that a correct far end does not send.
    pub violations: u64,
    /// Nanoseconds: smoothed round trip, its deviation, the least one.
    pub rtt: u64,
    /// See [`Self::rtt`].
    pub rtt_deviation: u64,
    /// See [`Self::rtt`].
    pub rtt_least: u64,
    /// Nanoseconds that frame and acknowledgement were under way alone, the least of the last 30 to 60 s; 0: not known.
    pub way_least: u64,
    /// Bytes that may be under way, and that are.
    pub window: u64,
    /// See [`Self::window`].
    pub in_flight: u64,
    /// Bytes of the largest frame in use.
    pub frame: u64,
}
