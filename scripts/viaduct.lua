-- Wireshark dissector for the frames between two Viaduct backends, as docs/protocol.md describes them.
--
--   tshark -X lua_script:scripts/viaduct.lua -r frames.pcap
--   wireshark -X lua_script:scripts/viaduct.lua frames.pcap
--
-- A link with `pcap = "FILE"` in the daemon's configuration writes such a file; a capture from the wire does too.
-- Frames are found by EtherType 0x88b5, and by UDP port 7447; for another port: -d udp.port==N,viaduct.
-- The body of a sealed frame cannot be shown: Wireshark does not have the key.

local ETHER_TYPE = 0x88b5
local UDP_PORT = 7447
local VERSION = 1
local HEADER_BYTES = 16
local OPERATION_BYTES = 4
local TAG_BYTES = 16

local HELLO, DATA, RESET, ANNOUNCE = 1, 2, 3, 4
local KINDS = { [HELLO] = "HELLO", [DATA] = "DATA", [RESET] = "RESET", [ANNOUNCE] = "ANNOUNCE" }

local PAD, ACK, PING, PROBE, WRITE, STATE, CONSUMED, CONTROL, CLOSE = 0, 1, 2, 3, 4, 5, 6, 7, 8
local OPERATIONS = {
    [PAD] = "PAD", [ACK] = "ACK", [PING] = "PING", [PROBE] = "PROBE", [WRITE] = "WRITE",
    [STATE] = "STATE", [CONSUMED] = "CONSUMED", [CONTROL] = "CONTROL", [CLOSE] = "CLOSE",
}

local OFFER, CANDIDATE, PAIR, PAIRED, REFUSE, WITHDRAW = 1, 2, 3, 4, 5, 6
local PAIRINGS = {
    [OFFER] = "OFFER", [CANDIDATE] = "CANDIDATE", [PAIR] = "PAIR", [PAIRED] = "PAIRED",
    [REFUSE] = "REFUSE", [WITHDRAW] = "WITHDRAW",
}

local viaduct = Proto("viaduct", "Viaduct link")

local header = {
    version = ProtoField.uint8("viaduct.version", "Version"),
    kind = ProtoField.uint8("viaduct.kind", "Kind", base.DEC, KINDS),
    flags = ProtoField.uint8("viaduct.flags", "Flags", base.HEX),
    sealed = ProtoField.bool("viaduct.flags.sealed", "Sealed", 8, nil, 0x01),
    key_phase = ProtoField.bool("viaduct.flags.key_phase", "Key phase", 8, nil, 0x02),
    ack_now = ProtoField.bool("viaduct.flags.ack_now", "Acknowledge now", 8, nil, 0x04),
    reserved = ProtoField.uint8("viaduct.reserved", "Reserved", base.HEX),
    session = ProtoField.uint32("viaduct.session", "Session", base.HEX),
    number = ProtoField.uint64("viaduct.number", "Number"),
    sealed_body = ProtoField.bytes("viaduct.sealed_body", "Sealed operations"),
    tag = ProtoField.bytes("viaduct.tag", "Tag"),
}

local hello = {
    session = ProtoField.uint32("viaduct.hello.session", "Session of the sender", base.HEX),
    echo = ProtoField.uint32("viaduct.hello.echo", "Session of the receiver", base.HEX),
    backend = ProtoField.bytes("viaduct.hello.backend", "Backend"),
    epoch = ProtoField.uint64("viaduct.hello.epoch", "Epoch", base.HEX),
    capabilities = ProtoField.uint32("viaduct.hello.capabilities", "Capabilities", base.HEX),
    max_frame = ProtoField.uint32("viaduct.hello.max_frame", "Longest frame"),
    idle_timeout = ProtoField.uint32("viaduct.hello.idle_timeout", "Idle timeout (ms)"),
    window = ProtoField.uint32("viaduct.hello.window", "Window"),
    flags = ProtoField.uint32("viaduct.hello.flags", "Flags", base.HEX),
    answer = ProtoField.bool("viaduct.hello.answer", "Is an answer", 32, nil, 0x01),
    live = ProtoField.bool("viaduct.hello.live", "Has a session", 32, nil, 0x02),
    reserved = ProtoField.uint32("viaduct.hello.reserved", "Reserved", base.HEX),
    nonce = ProtoField.bytes("viaduct.hello.nonce", "Nonce of the sender"),
    echo_nonce = ProtoField.bytes("viaduct.hello.echo_nonce", "Nonce of the receiver"),
}

local announce = {
    backend = ProtoField.bytes("viaduct.announce.backend", "Backend"),
    epoch = ProtoField.uint64("viaduct.announce.epoch", "Epoch", base.HEX),
    count = ProtoField.uint16("viaduct.announce.count", "Addresses"),
    reserved = ProtoField.bytes("viaduct.announce.reserved", "Reserved"),
    address = ProtoField.ipv6("viaduct.announce.address", "Address"),
}

local operation = {
    kind = ProtoField.uint8("viaduct.operation", "Operation", base.DEC, OPERATIONS),
    flags = ProtoField.uint8("viaduct.operation.flags", "Flags", base.HEX),
    length = ProtoField.uint16("viaduct.operation.length", "Length"),
    endpoint = ProtoField.uint32("viaduct.endpoint", "Endpoint of the receiver"),
    padding = ProtoField.bytes("viaduct.padding", "Padding"),
}

local ack = {
    largest = ProtoField.uint64("viaduct.ack.largest", "Largest number"),
    delay = ProtoField.uint32("viaduct.ack.delay", "Delay (us)"),
    count = ProtoField.uint16("viaduct.ack.ranges", "Ranges"),
    reserved = ProtoField.uint16("viaduct.ack.reserved", "Reserved", base.HEX),
    gap = ProtoField.uint32("viaduct.ack.gap", "Missing"),
    length = ProtoField.uint32("viaduct.ack.length", "Arrived"),
}

local write = {
    rkey = ProtoField.uint32("viaduct.write.rkey", "Key", base.HEX),
    offset = ProtoField.uint64("viaduct.write.offset", "Offset"),
    payload = ProtoField.bytes("viaduct.write.payload", "Payload"),
}

local state = {
    rkey = ProtoField.uint32("viaduct.state.rkey", "Key", base.HEX),
    sequence = ProtoField.uint32("viaduct.state.sequence", "Sequence"),
    flags = ProtoField.uint32("viaduct.state.flags", "Flags", base.HEX),
    reason = ProtoField.uint32("viaduct.state.reason", "Reason"),
    switch_at = ProtoField.uint64("viaduct.state.switch_at", "Switch at"),
    end_at = ProtoField.uint64("viaduct.state.end_at", "End at"),
    left_at = ProtoField.uint64("viaduct.state.left_at", "Left at"),
}

local STATE_FLAGS = {
    { 0x01, "armed" }, { 0x02, "switched" }, { 0x04, "ended" }, { 0x08, "gone" },
    { 0x10, "asked" }, { 0x20, "left" }, { 0x40, "broken" }, { 0x80, "off" },
    { 0x100, "confirmed" }, { 0x200, "doubts" }, { 0x400, "unread" }, { 0x800, "done" },
}

local consumed = {
    rkey = ProtoField.uint32("viaduct.consumed.rkey", "Key", base.HEX),
    head = ProtoField.uint64("viaduct.consumed.head", "Head"),
}

local control = {
    sequence = ProtoField.uint32("viaduct.control.sequence", "Sequence"),
    message = ProtoField.bytes("viaduct.control.message", "Message"),
}

local close = {
    reason = ProtoField.uint32("viaduct.close.reason", "Reason"),
}

local pairing = {
    kind = ProtoField.uint8("viaduct.pairing", "Pairing", base.DEC, PAIRINGS),
    ring_log2 = ProtoField.uint8("viaduct.pairing.ring_log2", "Ring size (power of two)"),
    offer = ProtoField.uint64("viaduct.pairing.offer", "Registration of the leader"),
    id = ProtoField.uint64("viaduct.pairing.id", "Registration"),
    own_v4 = ProtoField.ipv4("viaduct.pairing.own", "Own address"),
    far_v4 = ProtoField.ipv4("viaduct.pairing.far", "Far address"),
    own_v6 = ProtoField.ipv6("viaduct.pairing.own_v6", "Own address"),
    far_v6 = ProtoField.ipv6("viaduct.pairing.far_v6", "Far address"),
    own_port = ProtoField.uint16("viaduct.pairing.own_port", "Own port"),
    far_port = ProtoField.uint16("viaduct.pairing.far_port", "Far port"),
    place = ProtoField.uint32("viaduct.pairing.endpoint", "Endpoint of the sender"),
    rkey = ProtoField.uint32("viaduct.pairing.rkey", "Key", base.HEX),
    reason = ProtoField.uint32("viaduct.pairing.reason", "Reason"),
    sample = ProtoField.bytes("viaduct.pairing.sample", "Sample of the connection"),
}

viaduct.fields = {}
for _, group in ipairs({
    header, hello, announce, operation, ack, write, state, consumed, control, close, pairing,
}) do
    for _, field in pairs(group) do
        table.insert(viaduct.fields, field)
    end
end

local bad = ProtoExpert.new("viaduct.bad", "Not as the protocol says", expert.group.MALFORMED, expert.severity.ERROR)
viaduct.experts = { bad }

local function complain(tree, range, words)
    tree:add_proto_expert_info(bad, words)
    return words
end

-- Each of these shows the body of one operation (without the four bytes in front) and returns a few words about it.
local show = {}

show[ACK] = function(body, tree)
    if body:len() < 16 then
        return complain(tree, body, "ACK: too short")
    end
    tree:add(ack.largest, body(0, 8))
    tree:add(ack.delay, body(8, 4))
    tree:add(ack.count, body(12, 2))
    tree:add(ack.reserved, body(14, 2))
    local count = body(12, 2):uint()
    if count == 0 or body:len() ~= 16 + count * 8 then
        return complain(tree, body, "ACK: wrong number of ranges")
    end
    local left = body(0, 8):uint64() + 1
    local words = {}
    for index = 0, count - 1 do
        local range = body(16 + index * 8, 8)
        local last = left - range(0, 4):uint() - 1
        left = last + 1 - range(4, 4):uint()
        local text = tostring(left) .. "-" .. tostring(last)
        local branch = tree:add(viaduct, range(), "Range: " .. text)
        branch:add(ack.gap, range(0, 4))
        branch:add(ack.length, range(4, 4))
        table.insert(words, text)
    end
    return "ACK " .. table.concat(words, " ")
end

show[WRITE] = function(body, tree)
    if body:len() < 17 then
        return complain(tree, body, "WRITE: too short")
    end
    tree:add(operation.endpoint, body(0, 4))
    tree:add(write.rkey, body(4, 4))
    tree:add(write.offset, body(8, 8))
    tree:add(write.payload, body(16))
    return string.format("WRITE %u %s+%u", body(0, 4):uint(), tostring(body(8, 8):uint64()), body:len() - 16)
end

show[STATE] = function(body, tree)
    if body:len() ~= 44 then
        return complain(tree, body, "STATE: wrong length")
    end
    tree:add(operation.endpoint, body(0, 4))
    tree:add(state.rkey, body(4, 4))
    tree:add(state.sequence, body(8, 4))
    local flags = {}
    for _, flag in ipairs(STATE_FLAGS) do
        if bit.band(body(12, 4):uint(), flag[1]) ~= 0 then
            table.insert(flags, flag[2])
        end
    end
    local names = table.concat(flags, " ")
    tree:add(state.flags, body(12, 4)):append_text(" (" .. names .. ")")
    tree:add(state.reason, body(16, 4))
    tree:add(state.switch_at, body(20, 8))
    tree:add(state.end_at, body(28, 8))
    tree:add(state.left_at, body(36, 8))
    return string.format("STATE %u %s", body(0, 4):uint(), names)
end

show[CONSUMED] = function(body, tree)
    if body:len() ~= 16 then
        return complain(tree, body, "CONSUMED: wrong length")
    end
    tree:add(operation.endpoint, body(0, 4))
    tree:add(consumed.rkey, body(4, 4))
    tree:add(consumed.head, body(8, 8))
    return string.format("CONSUMED %u %s", body(0, 4):uint(), tostring(body(8, 8):uint64()))
end

show[CLOSE] = function(body, tree)
    if body:len() ~= 4 then
        return complain(tree, body, "CLOSE: wrong length")
    end
    tree:add(close.reason, body(0, 4))
    return string.format("CLOSE %u", body(0, 4):uint())
end

-- Shows a message about one connection; see rdma-core/src/wire/pairing/raw.rs for its fields.
local function show_pairing(message, tree)
    local LENGTHS = { [OFFER] = 84, [CANDIDATE] = 56, [PAIR] = 28, [PAIRED] = 20, [REFUSE] = 20, [WITHDRAW] = 20 }
    local kind = message(0, 1):uint()
    if message:len() ~= LENGTHS[kind] then
        return complain(tree, message, "CONTROL: unknown message")
    end
    tree:add(pairing.kind, message(0, 1))
    if kind == OFFER then
        local v6 = message(2, 1):uint() == 6
        local bytes = v6 and 16 or 4
        tree:add(pairing.ring_log2, message(1, 1))
        tree:add(pairing.offer, message(8, 8))
        tree:add(v6 and pairing.own_v6 or pairing.own_v4, message(16, bytes))
        tree:add(pairing.own_port, message(4, 2))
        tree:add(v6 and pairing.far_v6 or pairing.far_v4, message(32, bytes))
        tree:add(pairing.far_port, message(6, 2))
        tree:add(pairing.sample, message(48))
    elseif kind == CANDIDATE then
        tree:add(pairing.ring_log2, message(1, 1))
        tree:add(pairing.offer, message(4, 8))
        tree:add(pairing.id, message(12, 8))
        tree:add(pairing.sample, message(20))
    elseif kind == PAIR then
        tree:add(pairing.ring_log2, message(1, 1))
        tree:add(pairing.place, message(4, 4))
        tree:add(pairing.rkey, message(8, 4))
        tree:add(pairing.id, message(12, 8))
        tree:add(pairing.offer, message(20, 8))
    elseif kind == PAIRED then
        tree:add(pairing.place, message(4, 4))
        tree:add(pairing.rkey, message(8, 4))
        tree:add(pairing.offer, message(12, 8))
    elseif kind == REFUSE then
        tree:add(pairing.reason, message(4, 4))
        tree:add(pairing.id, message(12, 8))
    else
        tree:add(pairing.offer, message(12, 8))
    end
    return PAIRINGS[kind]
end

show[CONTROL] = function(body, tree)
    if body:len() < 4 then
        return complain(tree, body, "CONTROL: too short")
    end
    tree:add(control.sequence, body(0, 4))
    local words = "empty"
    if body:len() > 4 then
        local message = body(4)
        local branch = tree:add(control.message, message)
        words = show_pairing(message:tvb(), branch)
    end
    return string.format("CONTROL %u %s", body(0, 4):uint(), words)
end

local function show_operations(body, tree, words)
    local at = 0
    while at < body:len() do
        local kind = body(at, 1):uint()
        if kind == PAD then
            tree:add(operation.padding, body(at))
            table.insert(words, "PAD")
            return
        end
        local name = OPERATIONS[kind]
        local rest = body:len() - at
        if not name or rest < OPERATION_BYTES or rest - OPERATION_BYTES < body(at + 2, 2):uint() then
            table.insert(words, complain(tree, body(at), "bad operation"))
            return
        end
        local length = body(at + 2, 2):uint()
        local branch = tree:add(viaduct, body(at, OPERATION_BYTES + length), name)
        branch:add(operation.kind, body(at, 1))
        branch:add(operation.flags, body(at + 1, 1))
        branch:add(operation.length, body(at + 2, 2))
        at = at + OPERATION_BYTES
        if show[kind] and length > 0 then
            local text = show[kind](body(at, length):tvb(), branch)
            branch:set_text(text)
            table.insert(words, text)
        elseif show[kind] or length > 0 then
            table.insert(words, complain(branch, body, name .. ": wrong length"))
        else
            table.insert(words, name)
        end
        at = at + length
    end
end

local function show_hello(body, tree, words)
    if body:len() < 104 then
        table.insert(words, complain(tree, body, "too short"))
        return
    end
    tree:add(hello.session, body(0, 4))
    tree:add(hello.echo, body(4, 4))
    tree:add(hello.backend, body(8, 16))
    tree:add(hello.epoch, body(24, 8))
    tree:add(hello.capabilities, body(32, 4))
    tree:add(hello.max_frame, body(36, 4))
    tree:add(hello.idle_timeout, body(40, 4))
    tree:add(hello.window, body(44, 4))
    local flags = tree:add(hello.flags, body(48, 4))
    flags:add(hello.answer, body(48, 4))
    flags:add(hello.live, body(48, 4))
    tree:add(hello.reserved, body(52, 4))
    tree:add(hello.nonce, body(56, 16))
    tree:add(hello.echo_nonce, body(72, 16))
    tree:add(header.tag, body(88, 16))
    table.insert(words, string.format("session %08x echo %08x", body(0, 4):uint(), body(4, 4):uint()))
    if bit.band(body(48, 4):uint(), 1) ~= 0 then
        table.insert(words, "answer")
    end
end

local function show_announce(body, tree, words)
    if body:len() < 32 or body:len() < 32 + body(24, 2):uint() * 16 then
        table.insert(words, complain(tree, body, "too short"))
        return
    end
    tree:add(announce.backend, body(0, 16))
    tree:add(announce.epoch, body(16, 8))
    tree:add(announce.count, body(24, 2))
    tree:add(announce.reserved, body(26, 6))
    local count = body(24, 2):uint()
    for index = 0, count - 1 do
        tree:add(announce.address, body(32 + index * 16, 16))
    end
    table.insert(words, count .. " addresses")
end

function viaduct.dissector(frame, info, root)
    if frame:len() < HEADER_BYTES or frame(0, 1):uint() ~= VERSION or not KINDS[frame(1, 1):uint()] then
        return 0
    end
    info.cols.protocol = "VIADUCT"
    local kind, flags = frame(1, 1):uint(), frame(2, 1):uint()
    local tree = root:add(viaduct, frame())
    tree:add(header.version, frame(0, 1))
    tree:add(header.kind, frame(1, 1))
    local branch = tree:add(header.flags, frame(2, 1))
    branch:add(header.sealed, frame(2, 1))
    branch:add(header.key_phase, frame(2, 1))
    branch:add(header.ack_now, frame(2, 1))
    tree:add(header.reserved, frame(3, 1))
    tree:add(header.session, frame(4, 4))
    tree:add(header.number, frame(8, 8))

    local words = {}
    local body = frame:len() > HEADER_BYTES and frame(HEADER_BYTES):tvb() or nil
    if kind == DATA then
        table.insert(words, string.format("%08x #%s", frame(4, 4):uint(), tostring(frame(8, 8):uint64())))
    elseif kind == RESET then
        table.insert(words, string.format("%08x", frame(4, 4):uint()))
    end
    if not body then
        if kind ~= RESET then
            table.insert(words, complain(tree, frame, "nothing behind the header"))
        end
    elseif kind == HELLO then
        show_hello(body, tree, words)
    elseif kind == ANNOUNCE then
        show_announce(body, tree, words)
    elseif kind == DATA and bit.band(flags, 1) ~= 0 then
        if body:len() < TAG_BYTES then
            table.insert(words, complain(tree, body, "too short to be sealed"))
        else
            local sealed = body:len() - TAG_BYTES
            if sealed > 0 then
                tree:add(header.sealed_body, body(0, sealed))
            end
            tree:add(header.tag, body(sealed))
            table.insert(words, "sealed")
        end
    elseif kind == DATA then
        show_operations(body, tree, words)
    end
    local text = KINDS[kind] .. " " .. table.concat(words, ", ")
    info.cols.info = text
    tree:append_text(", " .. text)
    return frame:len()
end

DissectorTable.get("udp.port"):add(UDP_PORT, viaduct)
DissectorTable.get("ethertype"):add(ETHER_TYPE, viaduct)
