//! Where settings are written, the strongest place first: an annotation of their own, the
//! `ProxyConfig` in the workload's annotation, the `ProxyConfig` of the mesh.

use std::collections::BTreeMap;

use crate::model::{
    decode,
    mesh::ProxyConfig,
    settings::{self, Setting},
    workload::PROXY_CONFIG_ANNOTATION,
};

/// Where the value of a setting was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// In its own annotation.
    Annotation,
    /// In the annotation that holds a `ProxyConfig`.
    ProxyConfig,
    /// In the `MeshConfig`.
    Mesh,
}

/// Where each setting was written that holds, by its annotation. What is not here has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<&'static str, Written>);

impl Origins {
    /// Where the value was written; `None`: nowhere, and the default holds.
    #[must_use]
    pub fn of(&self, setting: &Setting) -> Option<Written> {
        self.0.get(setting.annotation).copied()
    }
}

/// An annotation, or one element of it, that cannot be used, or has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The annotation.
    pub annotation: &'static str,
    /// What was written.
    pub value: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub remedy: String,
    /// It can be used, but another setting leaves it without effect.
    pub without_effect: bool,
}

/// Reads settings; collects what is wrong with them.
pub(super) struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    /// Of the workload.
    own: ProxyConfig,
    mesh: &'a ProxyConfig,
    pub origins: Origins,
    pub problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(annotations: &'a BTreeMap<String, String>, mesh: &'a ProxyConfig) -> Self {
        let mut reader = Self {
            annotations,
            own: ProxyConfig::default(),
            mesh,
            origins: Origins::default(),
            problems: Vec::new(),
        };
        if let Some(text) = annotations.get(PROXY_CONFIG_ANNOTATION) {
            let (own, problems) = decode::mesh::proxy_config(text);
            reader.own = own;
            reader
                .problems
                .extend(problems.into_iter().map(|problem| Problem {
                    annotation: PROXY_CONFIG_ANNOTATION,
                    value: String::new(),
                    message: format!("{problem}; it is left out"),
                    remedy: "write a ProxyConfig as YAML".into(),
                    without_effect: false,
                }));
        }
        reader
    }

    /// One value: the strongest that can be used. An empty text is no value.
    pub fn value<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.value_or_field(setting, parse, |_| None)
    }

    /// One value, which a `ProxyConfig` has as a field.
    pub fn value_or_field<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Option<T>,
        field: impl Fn(&ProxyConfig) -> Option<T>,
    ) -> Option<T> {
        for written in [Written::Annotation, Written::ProxyConfig, Written::Mesh] {
            let text = self.text_in(setting, written).map(str::trim);
            let mut value = None;
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                value = parse(text);
                if value.is_none() {
                    let text = text.to_owned();
                    self.unusable(setting, written, text);
                }
            }
            let value = value.or_else(|| field(self.config(written)?));
            if value.is_some() {
                self.origins.0.insert(setting.annotation, written);
                return value;
            }
        }
        None
    }

    /// The elements of the strongest list, as far as they can be used; `None`: there is no list.
    pub fn list<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (written, text) = self.text(setting)?;
        let text = text.to_owned();
        self.origins.0.insert(setting.annotation, written);
        let mut list = Vec::new();
        for element in settings::elements(&text) {
            match parse(element) {
                Some(element) => list.push(element),
                None => self.unusable(setting, written, element.to_owned()),
            }
        }
        Some(list)
    }

    /// The strongest text.
    pub fn text(&self, setting: &Setting) -> Option<(Written, &str)> {
        [Written::Annotation, Written::ProxyConfig, Written::Mesh]
            .into_iter()
            .find_map(|written| Some((written, self.text_in(setting, written)?)))
    }

    /// Notes where a value was written that is not read here.
    pub fn note(&mut self, setting: &Setting) {
        if let Some((written, _)) = self.text(setting) {
            self.origins.0.insert(setting.annotation, written);
        }
    }

    /// Takes a list for not written.
    pub fn drop(&mut self, setting: &Setting, problem: &str) {
        let written = self.origins.0.remove(setting.annotation);
        // Else it was reported where it was written.
        if written == Some(Written::Annotation) {
            let value = self.annotations.get(setting.annotation);
            self.problems.push(Problem {
                annotation: setting.annotation,
                value: value.cloned().unwrap_or_default(),
                message: format!("{problem}; it is left out"),
                remedy: "name fewer".into(),
                without_effect: false,
            });
        }
    }

    /// A setting that another one leaves without effect.
    pub fn without_effect(&mut self, setting: &Setting, message: &str, remedy: &str) {
        let annotation = match self.origins.of(setting) {
            Some(Written::Annotation) => setting.annotation,
            Some(Written::ProxyConfig) => PROXY_CONFIG_ANNOTATION,
            // What holds for all workloads need not have an effect on each.
            Some(Written::Mesh) | None => return,
        };
        let value = self.annotations.get(annotation);
        self.problems.push(Problem {
            annotation,
            value: value.cloned().unwrap_or_default(),
            message: message.into(),
            remedy: remedy.into(),
            without_effect: true,
        });
    }

    fn config(&self, written: Written) -> Option<&ProxyConfig> {
        match written {
            Written::Annotation => None,
            Written::ProxyConfig => Some(&self.own),
            Written::Mesh => Some(self.mesh),
        }
    }

    fn text_in(&self, setting: &Setting, written: Written) -> Option<&str> {
        let texts = match self.config(written) {
            None => self.annotations.get(setting.annotation),
            Some(_) if setting.environment.is_empty() => None,
            Some(config) => config.proxy_metadata.get(setting.environment),
        };
        texts.map(String::as_str)
    }

    /// Environment variables are reported where they are written.
    fn unusable(&mut self, setting: &Setting, written: Written, value: String) {
        if written != Written::Annotation {
            return;
        }
        self.problems.push(Problem {
            annotation: setting.annotation,
            message: format!("{value:?} cannot be used and is left out"),
            remedy: format!("write {}", setting.expected),
            value,
            without_effect: false,
        });
    }
}
