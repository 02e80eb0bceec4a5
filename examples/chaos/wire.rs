//! As much of HTTP/1.1 as a proxy has to know: where a message ends, so that it can be read, held, lost or passed on
//! whole. Nothing is changed on the way but a header that a request may be given.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A connection.
pub(crate) type Stream = BufReader<TcpStream>;

/// A request or a response, as it came over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// First line and headers, with the empty line that ends them.
    head: String,
    /// What follows, as it came: with the marks of its chunks.
    rest: Vec<u8>,
    /// The body without them.
    body: Vec<u8>,
}

impl Message {
    /// An answer of our own.
    pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Self {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        Self { head, rest: body.as_bytes().to_vec(), body: body.as_bytes().to_vec() }
    }

    /// The next message; `None` where the peer has ended the connection.
    pub(crate) async fn read(stream: &mut Stream) -> io::Result<Option<Self>> {
        let mut head = String::new();
        loop {
            let before = head.len();
            if stream.read_line(&mut head).await? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            if head[before..].trim_end().is_empty() {
                break;
            }
        }
        let mut message = Self { head, rest: Vec::new(), body: Vec::new() };
        if message.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            message.read_chunks(stream).await?;
            return Ok(Some(message));
        }
        match message.header("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) => {
                message.rest.resize(length, 0);
                stream.read_exact(&mut message.rest).await?;
            }
            Some(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
            // A response without a length ends with its connection; a request without one has no body.
            None if message.head.starts_with("HTTP/") => {
                stream.read_to_end(&mut message.rest).await?;
            }
            None => {}
        }
        message.body.clone_from(&message.rest);
        Ok(Some(message))
    }

    async fn read_chunks(&mut self, stream: &mut Stream) -> io::Result<()> {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            self.rest.extend_from_slice(line.as_bytes());
            let size = line.trim_end().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            self.rest.extend_from_slice(&chunk);
            self.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) async fn write(&self, stream: &mut Stream) -> io::Result<()> {
        let mut whole = self.head.as_bytes().to_vec();
        whole.extend_from_slice(&self.rest);
        stream.get_mut().write_all(&whole).await
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The same request with one header more.
    #[must_use]
    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Some(end) = self.head.find("\r\n") {
            self.head.insert_str(end, &format!("\r\n{name}: {value}"));
        }
        self
    }

    /// A response's status; 0 for a request.
    pub(crate) fn status(&self) -> u16 {
        let words = self.head.strip_prefix("HTTP/").and_then(|rest| rest.split_whitespace().nth(1));
        words.and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Sends a request over a connection of its own, and waits for the whole answer.
pub(crate) async fn exchange(server: &str, request: &Message) -> io::Result<Message> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut far = BufReader::new(stream);
    request.write(&mut far).await?;
    Message::read(&mut far).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
