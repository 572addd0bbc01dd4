// SPDX-License-Identifier: Apache-2.0

package cni

import "slices"

// The options of New. They do not change what is done, only what GetConfig
// returns, and so what `crictl info` shows.

// interfaceName is the one interface of a sandbox, as CRI expects it.
const interfaceName = "eth0"

type settings struct {
	pluginDirs       []string
	pluginConfDir    string
	pluginMaxConfNum int
}

// Opt is an option of New.
type Opt func(s *settings) error

// WithMinNetworkCount is ignored: there is one network, and lo.
func WithMinNetworkCount(int) Opt { return WithDefaultConf }

// WithPluginDir is reported by GetConfig.
func WithPluginDir(dirs []string) Opt {
	dirs = slices.Clone(dirs)
	return func(s *settings) error {
		s.pluginDirs = dirs
		return nil
	}
}

// WithPluginConfDir is reported by GetConfig.
func WithPluginConfDir(dir string) Opt {
	return func(s *settings) error {
		s.pluginConfDir = dir
		return nil
	}
}

// WithPluginMaxConfNum is reported by GetConfig.
func WithPluginMaxConfNum(count int) Opt {
	return func(s *settings) error {
		s.pluginMaxConfNum = count
		return nil
	}
}

// WithLoNetwork is ignored: the service brings lo up.
func WithLoNetwork(*settings) error { return nil }

// WithDefaultConf is ignored: the service's network is the only one.
func WithDefaultConf(*settings) error { return nil }

// ConfigResult is what GetConfig returns; containerd writes it as JSON.
type ConfigResult struct {
	PluginDirs       []string
	PluginConfDir    string
	PluginMaxConfNum int
	Prefix           string
	Networks         []*confNetwork
}

type confNetwork struct {
	Config *networkConfList
	IFName string
}

type networkConfList struct {
	Name       string
	CNIVersion string
}

func (c *client) GetConfig() *ConfigResult {
	c.mu.Lock()
	told := c.settings
	c.mu.Unlock()
	return &ConfigResult{
		PluginDirs:       slices.Clone(told.pluginDirs),
		PluginConfDir:    told.pluginConfDir,
		PluginMaxConfNum: told.pluginMaxConfNum,
		Prefix:           "eth",
		Networks: []*confNetwork{{
			Config: &networkConfList{Name: "metropolis", CNIVersion: "1.1.0"},
			IFName: interfaceName,
		}},
	}
}
