//! How far a pull is, on standard error: bars on a terminal, short lines elsewhere.
//!
//! Own code, for it is a page: lines that are drawn again in place, made of what the daemon
//! tells. A library would bring a clock, threads and a layer of terminal emulation along.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};

use proto::control::{LayerProgress, PullProgress};

use super::human::{printable, short, size};

/// Characters of a bar.
const BAR: usize = 30;
/// Of a terminal that does not say how large it is.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// What has been shown so far.
#[derive(Debug)]
pub(super) struct Progress {
    /// Lines are drawn again in place.
    redraws: bool,
    /// Lines drawn that the next ones replace.
    drawn: usize,
    news: News,
}

impl Progress {
    /// On standard error.
    pub(super) fn standard() -> Progress {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let redraws = io::stderr().is_terminal() && !dumb;
        Progress { redraws, drawn: 0, news: News::default() }
    }

    /// Shows how far it is now. If standard error is gone, there is nobody to show it to.
    pub(super) fn update(&mut self, now: &PullProgress) {
        let text = if self.redraws {
            let (columns, rows) = terminal_size();
            let lines = bars(now, columns, rows);
            let text = redraw(&lines, self.drawn);
            self.drawn = lines.len();
            text
        } else {
            self.news.of(now)
        };
        io::stderr().write_all(text.as_bytes()).ok();
    }
}

fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => USUAL_SIZE,
    }
}

/// The lines over those drawn before: up, then each cleared and written, then the rest cleared.
fn redraw(lines: &[String], drawn: usize) -> String {
    let mut text = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
    for line in lines {
        text.push_str(&format!("\r\x1b[2K{line}\n"));
    }
    text.push_str("\x1b[J");
    text
}

/// A line for the image and one for each layer; of more layers than there are rows, those under way.
fn bars(now: &PullProgress, columns: usize, rows: usize) -> Vec<String> {
    let layers = &now.layers;
    let room = rows.saturating_sub(3);
    let mut lines = vec![heading(now)];
    if layers.len() <= room {
        lines.extend(layers.iter().map(bar));
    } else {
        let under_way = layers.iter().filter(|layer| layer.state == "fetching");
        lines.extend(under_way.take(room.saturating_sub(1)).map(bar));
        let ready = layers.iter().filter(|layer| is_ready(layer)).count();
        lines.push(format!("{ready} of {} layers are there", layers.len()));
    }
    let cut = |line: String| line.chars().take(columns.saturating_sub(1)).collect();
    lines.into_iter().map(cut).collect()
}

fn is_ready(layer: &LayerProgress) -> bool {
    layer.state == "done" || layer.state == "present"
}

fn heading(now: &PullProgress) -> String {
    let total: u64 = now.layers.iter().map(|layer| layer.size).sum();
    let fetched: u64 = now
        .layers
        .iter()
        .map(|layer| if is_ready(layer) { layer.size } else { layer.fetched.min(layer.size) })
        .sum();
    let image = printable(&now.image);
    match total {
        0 => format!("{image}: {}", printable(&now.stage)),
        total => {
            format!("{image}: {}, {} of {}", printable(&now.stage), size(fetched), size(total))
        }
    }
}

fn bar(layer: &LayerProgress) -> String {
    let digest = printable(short(&layer.digest));
    match layer.state.as_str() {
        "fetching" => {
            let filled = match layer.size {
                0 => 0,
                total => {
                    let part =
                        u128::from(layer.fetched.min(total)) * BAR as u128 / u128::from(total);
                    usize::try_from(part).unwrap_or(BAR)
                }
            };
            let head = if filled < BAR { ">" } else { "" };
            let (done, left) = ("=".repeat(filled), " ".repeat(BAR - filled - head.len()));
            format!("{digest} [{done}{head}{left}] {} of {}", size(layer.fetched), size(layer.size))
        }
        "done" => format!("{digest} done, {}", size(layer.size)),
        "present" => format!("{digest} is there already"),
        other => format!("{digest} {}", printable(other)),
    }
}

/// What was told in lines, so that nothing is told twice.
#[derive(Debug, Default)]
struct News {
    stage: String,
    layers: HashSet<String>,
}

impl News {
    /// The lines that tell what is new.
    fn of(&mut self, now: &PullProgress) -> String {
        let image = printable(&now.image);
        let mut text = String::new();
        if self.stage != now.stage {
            self.stage.clone_from(&now.stage);
            text.push_str(&format!("{image}: {}\n", printable(&now.stage)));
        }
        for layer in now.layers.iter().filter(|layer| is_ready(layer)) {
            if self.layers.insert(layer.digest.clone()) {
                let (told, count) = (self.layers.len(), now.layers.len());
                text.push_str(&format!("{image}: layer {told} of {count}: {}\n", bar(layer)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digit: char, state: &str, size: u64, fetched: u64) -> LayerProgress {
        let digest = format!("sha256:{}", digit.to_string().repeat(64));
        LayerProgress { digest, state: state.into(), size, fetched }
    }

    fn progress(stage: &str, layers: Vec<LayerProgress>) -> PullProgress {
        PullProgress { image: "r.io/web:1".into(), stage: stage.into(), layers }
    }

    #[track_caller]
    fn check_bars(now: &PullProgress, columns: usize, rows: usize, expected: &[&str]) {
        assert_eq!(bars(now, columns, rows), expected);
    }

    #[test]
    fn a_layer_has_a_line() {
        let now = progress(
            "fetching",
            vec![
                layer('a', "present", 1000, 0),
                layer('b', "done", 2000, 2000),
                layer('c', "fetching", 4000, 1000),
                layer('d', "waiting", 3000, 0),
            ],
        );
        check_bars(
            &now,
            100,
            24,
            &[
                "r.io/web:1: fetching, 4.00kB of 10.0kB",
                "aaaaaaaaaaaa is there already",
                "bbbbbbbbbbbb done, 2.00kB",
                "cccccccccccc [=======>                      ] 1.00kB of 4.00kB",
                "dddddddddddd waiting",
            ],
        );
        check_bars(
            &now,
            12,
            24,
            &["r.io/web:1:", "aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc", "ddddddddddd"],
        );
    }

    #[test]
    fn a_small_terminal_shows_what_is_under_way() {
        let mut layers: Vec<_> = (0..20).map(|_| layer('a', "done", 10, 10)).collect();
        layers.extend((0..20).map(|_| layer('b', "fetching", 10, 10)));
        let lines = bars(&progress("fetching", layers), 80, 10);
        assert_eq!(lines.len(), 8);
        assert_eq!(lines[1], "bbbbbbbbbbbb [==============================] 10B of 10B");
        assert_eq!(lines[7], "20 of 40 layers are there");
    }

    #[test]
    fn a_size_that_is_not_known_or_wrong_breaks_nothing() {
        check_bars(&progress("resolving", vec![]), 80, 24, &["r.io/web:1: resolving"]);
        let odd =
            progress("fetching", vec![layer('a', "fetching", 0, 7), layer('b', "fetching", 5, 7)]);
        let lines = bars(&odd, 80, 24);
        assert_eq!(lines[1], "aaaaaaaaaaaa [>                             ] 7B of 0B");
        assert_eq!(lines[2], "bbbbbbbbbbbb [==============================] 7B of 5B");
        assert_eq!(bars(&odd, 0, 0), ["", ""]);
    }

    #[test]
    fn lines_are_drawn_over_those_before() {
        assert_eq!(redraw(&["a".into()], 0), "\r\x1b[2Ka\n\x1b[J");
        assert_eq!(redraw(&["a".into(), "b".into()], 3), "\x1b[3A\r\x1b[2Ka\n\r\x1b[2Kb\n\x1b[J");
    }

    #[test]
    fn without_a_terminal_each_thing_is_told_once() {
        let mut news = News::default();
        assert_eq!(news.of(&progress("resolving", vec![])), "r.io/web:1: resolving\n");
        assert_eq!(news.of(&progress("resolving", vec![])), "");
        let layers = vec![layer('a', "present", 1, 0), layer('b', "fetching", 9, 1)];
        assert_eq!(
            news.of(&progress("fetching", layers)),
            "r.io/web:1: fetching\nr.io/web:1: layer 1 of 2: aaaaaaaaaaaa is there already\n"
        );
        let layers = vec![layer('a', "present", 1, 0), layer('b', "done", 9, 9)];
        assert_eq!(
            news.of(&progress("fetching", layers)),
            "r.io/web:1: layer 2 of 2: bbbbbbbbbbbb done, 9B\n"
        );
    }
}
