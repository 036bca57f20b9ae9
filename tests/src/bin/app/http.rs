//! HTTP/1.1, one request a connection.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
};

use httparse::{EMPTY_HEADER, Request};
use sidecar_tests::apps::wire::{Answer, Outcome, PATH_HEADER, Seen};
use ureq::{Agent, Body, http::Response};

use crate::socket;

/// How large the head of a request may be.
const LARGEST: u64 = 64 * 1024;

/// Makes a request. Statuses are answers, not errors.
pub fn request(url: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let config = Agent::config_builder()
        .timeout_global(Some(socket::PATIENCE))
        .http_status_as_error(false)
        .proxy(None)
        .build();
    match Agent::from(config).get(url).call() {
        Ok(response) => take(response, &mut outcome),
        Err(error) => outcome.error = Some(error.to_string()),
    }
    outcome
}

fn take(mut response: Response<Body>, outcome: &mut Outcome) {
    outcome.connected = true;
    let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    outcome.http = Some(Answer {
        status: response.status().as_u16(),
        server: header("server"),
        path: header(PATH_HEADER),
    });
    match response.body_mut().read_to_string() {
        // Another server's, a proxy's for one, is no `Seen`.
        Ok(body) => outcome.banner = serde_json::from_str::<Seen>(&body).ok(),
        Err(error) => outcome.error = Some(error.to_string()),
    }
}

/// Reads a request and answers it with `body`.
pub fn answer(mut connection: &File, body: &str) -> io::Result<()> {
    let path = path(&head(connection)?)?;
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         {PATH_HEADER}: {path}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// All lines up to the blank one.
fn head(connection: &File) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(connection.take(LARGEST));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

fn path(head: &[u8]) -> io::Result<String> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut request = Request::new(&mut headers);
    let parsed = request.parse(head).map_err(io::Error::other)?;
    match request.path {
        Some(path) if parsed.is_complete() => Ok(path.to_owned()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
