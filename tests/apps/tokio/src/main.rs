//! An echo server and its client on tokio.
//!
//! ```text
//! tokio-echo serve PORT
//! tokio-echo work  PORT CONNECTIONS ROUNDS
//! ```

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

const HOST: &str = "10.77.0.1";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let number =
        |at: usize| -> Result<usize> { Ok(words.get(at).ok_or("arguments are missing")?.parse()?) };
    let port = u16::try_from(number(2)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        .build()?;
    if words[1] == "serve" {
        runtime.block_on(serve(port))
    } else {
        runtime.block_on(work(port, number(3)?, number(4)?))
    }
}

async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((HOST, port)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            let _ = copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
}

async fn work(port: u16, connections: usize, rounds: usize) -> Result<()> {
    let tasks: Vec<_> = (0..connections)
        .map(|number| tokio::spawn(exchange(port, number as u64, rounds)))
        .collect();
    let mut digest = 0;
    for task in tasks {
        digest = mix(digest, &task.await??.to_le_bytes());
    }
    println!("digest {digest:016x}");
    println!("exchanges/s {:.0}", ping(port, rounds * 20).await?);
    Ok(())
}

/// Messages of many sizes there and back, then bulk both ways at once, then the end.
async fn exchange(port: u16, number: u64, rounds: usize) -> Result<u64> {
    let mut stream = TcpStream::connect((HOST, port)).await?;
    stream.set_nodelay(true)?;
    let mut chance = number * 2 + 1;
    let mut digest = 0;
    for _ in 0..rounds {
        let message = bytes(&mut chance, [1, 100, 5000, 100_000]);
        stream.write_all(&message).await?;
        let mut answer = vec![0; message.len()];
        stream.read_exact(&mut answer).await?;
        if answer != message {
            return Err("another answer".into());
        }
        digest = mix(digest, &answer);
    }
    let (mut from, mut to) = stream.into_split();
    let sender = tokio::spawn(async move {
        for _ in 0..rounds {
            to.write_all(&bytes(&mut chance, [50_000; 4])).await?;
        }
        to.shutdown().await
    });
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).await?;
    sender.await??;
    Ok(mix(digest, &rest))
}

async fn ping(port: u16, rounds: usize) -> Result<f64> {
    let mut stream = TcpStream::connect((HOST, port)).await?;
    stream.set_nodelay(true)?;
    let mut message = [7; 100];
    let start = Instant::now();
    for _ in 0..rounds {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
    }
    Ok(rounds as f64 / start.elapsed().as_secs_f64())
}

/// As many bytes as one of `sizes` says, out of a generator that every run has in common.
fn bytes(chance: &mut u64, sizes: [usize; 4]) -> Vec<u8> {
    let mut next = || {
        *chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*chance >> 33) as usize
    };
    let size = sizes[next() % 4];
    (0..size).map(|_| next() as u8).collect()
}

fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(hash ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
}
