import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;

/**
 * An echo server on one Selector, and clients with blocking channels, sockets and a Selector.
 *
 *     NioEcho serve PORT
 *     NioEcho work PORT CONNECTIONS ROUNDS FILE
 */
public final class NioEcho {
    private static final String HOST = "10.77.0.1";

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[1]);
        if (args[0].equals("serve")) {
            serve(port);
        } else {
            work(port, Integer.parseInt(args[2]), Integer.parseInt(args[3]), Path.of(args[4]));
        }
    }

    /** What a connection has read and not yet written. */
    private static final class Pending {
        final ArrayDeque<ByteBuffer> buffers = new ArrayDeque<>();
        boolean ended;
    }

    private static void serve(int port) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(HOST, port));
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel accepted = listener.accept();
                    accepted.configureBlocking(false);
                    accepted.register(selector, SelectionKey.OP_READ, new Pending());
                } else {
                    pump(key);
                }
            }
            selector.selectedKeys().clear();
        }
    }

    private static void pump(SelectionKey key) throws IOException {
        SocketChannel channel = (SocketChannel) key.channel();
        Pending pending = (Pending) key.attachment();
        if (key.isReadable()) {
            ByteBuffer buffer = ByteBuffer.allocate(65536);
            if (channel.read(buffer) < 0) {
                pending.ended = true;
            } else {
                pending.buffers.add(buffer.flip());
            }
        }
        while (!pending.buffers.isEmpty()) {
            channel.write(pending.buffers.peek());
            if (pending.buffers.peek().hasRemaining()) {
                break;
            }
            pending.buffers.remove();
        }
        if (pending.ended && pending.buffers.isEmpty()) {
            channel.close();
            return;
        }
        int interest = pending.buffers.isEmpty() ? 0 : SelectionKey.OP_WRITE;
        // No more is read than is kept in hand.
        if (!pending.ended && pending.buffers.size() < 16) {
            interest |= SelectionKey.OP_READ;
        }
        key.interestOps(interest);
    }

    private static void work(int port, int connections, int rounds, Path file) throws Exception {
        List<Thread> threads = new ArrayList<>();
        byte[][] digests = new byte[connections + 1][];
        for (int number = 0; number < connections; number++) {
            int mine = number;
            threads.add(new Thread(() -> {
                try {
                    digests[mine] = mine % 2 == 0 ? channels(port, mine, rounds) : streams(port, mine, rounds);
                } catch (Exception error) {
                    error.printStackTrace();
                }
            }));
        }
        threads.forEach(Thread::start);
        for (Thread thread : threads) {
            thread.join();
        }
        digests[connections] = transfer(port, file);
        MessageDigest all = MessageDigest.getInstance("SHA-256");
        for (byte[] digest : digests) {
            all.update(digest);
        }
        System.out.println("digest " + HexFormat.of().formatHex(all.digest()));
        System.out.println("exchanges/s " + ping(port, rounds * 20));
    }

    private static int size(Random random) {
        return new int[] {1, 100, 5000, 100000}[random.nextInt(4)];
    }

    private static byte[] channels(int port, int number, int rounds) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        Random random = new Random(number);
        try (SocketChannel channel = SocketChannel.open(new InetSocketAddress(HOST, port))) {
            for (int round = 0; round < rounds; round++) {
                byte[] bytes = new byte[size(random)];
                random.nextBytes(bytes);
                ByteBuffer out = ByteBuffer.wrap(bytes);
                while (out.hasRemaining()) {
                    channel.write(out);
                }
                ByteBuffer in = ByteBuffer.allocateDirect(bytes.length);
                while (in.hasRemaining() && channel.read(in) >= 0) {
                }
                digest.update(in.flip());
            }
            channel.shutdownOutput();
            if (channel.read(ByteBuffer.allocate(1)) != -1) {
                throw new IOException("no end");
            }
        }
        return digest.digest();
    }

    private static byte[] streams(int port, int number, int rounds) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        Random random = new Random(number);
        try (java.net.Socket socket = new java.net.Socket(HOST, port)) {
            socket.setTcpNoDelay(true);
            socket.setSoTimeout(30000);
            for (int round = 0; round < rounds; round++) {
                byte[] bytes = new byte[size(random)];
                random.nextBytes(bytes);
                socket.getOutputStream().write(bytes);
                digest.update(socket.getInputStream().readNBytes(bytes.length));
            }
            socket.setSoTimeout(50);
            try {
                socket.getInputStream().read();
                throw new IOException("something came");
            } catch (java.net.SocketTimeoutException expected) {
                digest.update((byte) 1);
            }
        }
        return digest.digest();
    }

    /** A file by transferTo, read back by a Selector while it is sent. */
    private static byte[] transfer(int port, Path path) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        try (SocketChannel channel = SocketChannel.open(new InetSocketAddress(HOST, port));
                FileChannel file = FileChannel.open(path);
                Selector selector = Selector.open()) {
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_READ | SelectionKey.OP_WRITE);
            long sent = 0;
            ByteBuffer buffer = ByteBuffer.allocateDirect(65536);
            while (true) {
                selector.select();
                SelectionKey key = selector.selectedKeys().iterator().next();
                selector.selectedKeys().clear();
                if (key.isValid() && key.isWritable()) {
                    sent += file.transferTo(sent, file.size() - sent, channel);
                    if (sent == file.size()) {
                        channel.shutdownOutput();
                        key.interestOps(SelectionKey.OP_READ);
                    }
                }
                if (key.isReadable()) {
                    buffer.clear();
                    if (channel.read(buffer) < 0) {
                        return digest.digest();
                    }
                    digest.update(buffer.flip());
                }
            }
        }
    }

    private static long ping(int port, int rounds) throws IOException {
        try (SocketChannel channel = SocketChannel.open(new InetSocketAddress(HOST, port))) {
            channel.socket().setTcpNoDelay(true);
            ByteBuffer buffer = ByteBuffer.allocateDirect(100);
            long start = System.nanoTime();
            for (int round = 0; round < rounds; round++) {
                buffer.clear();
                channel.write(buffer);
                buffer.clear();
                while (buffer.hasRemaining() && channel.read(buffer) >= 0) {
                }
            }
            return Math.round(rounds * 1e9 / (System.nanoTime() - start));
        }
    }
}
