//! Diagnostics as people and programs read them. Pure: values in, text out.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::model::diagnostic::{Diagnostic, Location, Severity};

/// Renders diagnostics as compilers do: what, where with the source line, and how to mend it.
/// Each ends with an empty line. Escape sequences are used only if `colour`.
#[must_use]
pub fn text(diagnostics: &[Diagnostic], colour: bool) -> String {
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    diagnostics
        .iter()
        .map(|diagnostic| one(diagnostic, &renderer) + "\n\n")
        .collect()
}

/// Renders diagnostics as a JSON array.
#[must_use]
pub fn json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    // Strings and numbers only, so there is nothing that JSON could not hold.
    serde_json::to_value(diagnostics).unwrap_or_default()
}

fn one(diagnostic: &Diagnostic, renderer: &Renderer) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level
        .primary_title(printable(&diagnostic.message))
        .id(diagnostic.code);
    // A group needs an element; this one is shown in any case.
    let help = Level::HELP.message(printable(&diagnostic.remedy));
    let mut group = match &diagnostic.location {
        Some(location) => title.element(snippet(location, &diagnostic.field)),
        None => match &diagnostic.resource {
            Some(at) => title.element(Origin::path(printable(&at.file)).line(as_usize(at.line))),
            None => Group::with_title(title),
        },
    };
    if let Some(resource) = &diagnostic.resource {
        let note = printable(&format!(
            "in {} {}/{}",
            resource.kind, resource.namespace, resource.name
        ));
        group = group.element(Level::NOTE.message(note));
    }
    renderer.render(&[group.element(help)])
}

fn snippet<'a>(
    location: &'a Location,
    field: &str,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    // Only the lines concerned go to the renderer: a file may be large.
    let text = &*location.text;
    let span = location.span.start.min(text.len())..location.span.end.min(text.len());
    let start = text
        .get(..span.start)
        .and_then(|t| t.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let end = text
        .get(span.end..)
        .and_then(|t| t.find('\n'))
        .map_or(text.len(), |at| span.end + at);
    let shown = text.get(start..end).unwrap_or_default();
    let marked = span.start - start..span.end - start;
    Snippet::source(shown)
        .path(printable(&location.file))
        .line_start(as_usize(location.line))
        .annotation(AnnotationKind::Primary.span(marked).label(printable(field)))
}

/// What comes from outside must not control the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn as_usize(line: u32) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{decode, tree::Source};

    fn diagnostics(text: &str) -> Vec<Diagnostic> {
        decode::text(&Source::new("specs/a.yaml", text)).diagnostics
    }

    const BROKEN: &str = "# a comment
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: web
  namespace: prod
spec:
  ingress:
  - port: {number: \"80\"}
    defaultEndpoint: 10.0.0.1:80
";

    #[test]
    fn the_source_line_is_shown_with_what_is_wrong_in_it() {
        let text = text(&diagnostics(BROKEN), false);
        let expected = "\
error[SCA0020]: expected an integer, found the string `80`
 --> specs/a.yaml:9:20
  |
9 |   - port: {number: \"80\"}
  |                    ^^^^ spec.ingress[0].port.number
  |
  = note: in Sidecar prod/web
  = help: remove the quotes

error[SCA0111]: `10.0.0.1:80`: `10.0.0.1` is not 127.0.0.1, ::1, 0.0.0.0 or ::
  --> specs/a.yaml:10:22
   |
10 |     defaultEndpoint: 10.0.0.1:80
   |                      ^^^^^^^^^^^ spec.ingress[0].defaultEndpoint
   |
   = note: in Sidecar prod/web
   = help: write 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT, unix:///path or unix://@abstract

";
        assert_eq!(text, expected);
    }

    #[test]
    fn colour_only_when_asked_for_and_nothing_else_reaches_the_terminal() {
        let evil = diagnostics("kind: \"\\e[31mX\\a\"\napiVersion: v1\n");
        assert_eq!(evil.len(), 1);
        assert!(!text(&evil, false).contains(['\x1b', '\x07']));
        assert!(text(&evil, true).contains("\x1b["));
        assert!(!text(&evil, true).contains('\x07'));
    }

    #[test]
    fn odd_places_are_rendered() {
        let source = Source::new("a", "é\nü");
        for span in [
            0..0,
            0..2,
            1..2,
            2..3,
            3..5,
            5..5,
            0..5,
            9..99,
            usize::MAX..usize::MAX,
        ] {
            let mut diagnostic = Diagnostic::new(crate::model::catalogue::SYNTAX, "x");
            diagnostic.location = Some(source.location(span.clone()));
            assert!(text(&[diagnostic], false).contains("SCA0001"), "{span:?}");
        }
        let nowhere = Diagnostic::new(crate::model::catalogue::SYNTAX, "nowhere");
        assert!(text(&[nowhere], false).contains("nowhere"));
    }

    #[test]
    fn json_has_everything_but_the_text() {
        let json = json(&diagnostics(BROKEN));
        assert_eq!(
            json[0],
            serde_json::json!({
                "code": "SCA0020",
                "severity": "error",
                "resource": {
                    "kind": "Sidecar", "namespace": "prod", "name": "web",
                    "file": "specs/a.yaml", "line": 2
                },
                "field": "spec.ingress[0].port.number",
                "message": "expected an integer, found the string `80`",
                "remedy": "remove the quotes",
                "location": {"file": "specs/a.yaml", "line": 9, "column": 20},
            })
        );
    }
}
